"""What is changed in users' Pods, so that their vLLM uses a pool.

Pure: a Pod and what is known of the pool go in, the changed Pod or a reason comes out. No kopf, no client, no clock; the
webhook and the reconciler bring what is needed from caches. Everything is idempotent: a Pod that was changed once is not
changed again, since the API server may ask more than once.
"""
