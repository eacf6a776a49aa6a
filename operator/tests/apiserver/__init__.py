"""Tests against a real kube-apiserver with its controllers, and the operator as a process of its own with the chart's
permissions. There is no node and no kubelet: Pods stay unscheduled, and a test that needs ready Pods writes their status
itself, where a kubelet would.
"""
