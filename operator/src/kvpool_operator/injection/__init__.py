"""What is changed in Pods and RayServices of others, so that their vLLM uses a pool.

Pure: an object and what is known of the pool go in, the changed object or a reason comes out. No kopf, no client, no clock;
the webhook and the reconciler bring what is needed from caches. Everything is idempotent: an object that was changed once
is not changed again, since the API server may ask more than once.
"""
