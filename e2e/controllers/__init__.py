"""Controllers of other projects, as their own programs, beside a control plane: KubeRay's operator and KServe's controller.

Each module says what is built, what the API server must know before, and how the program is started.  They run as processes
of this machine with an administrator's kubeconfig: what they do is looked at here, not what they may do.
"""
