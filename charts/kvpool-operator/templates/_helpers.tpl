{{- define "kvpool.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kvpool.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "kvpool.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else if hasPrefix .Release.Name (include "kvpool.name" .) }}
{{- include "kvpool.name" . }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "kvpool.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kvpool.selector" -}}
app.kubernetes.io/name: {{ include "kvpool.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kvpool.labels" -}}
{{ include "kvpool.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "kvpool.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "kvpool.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "kvpool.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* The settings file: the values, plus what other values decide. */ -}}
{{- define "kvpool.settings" -}}
{{- toYaml (merge (dict "watchNamespaces" .Values.watchNamespaces "namespace" .Release.Namespace "election" (dict "lease" (include "kvpool.fullname" .)) "webhook" (include "kvpool.webhook" . | fromYaml)) .Values.settings) }}
{{- end }}

{{- /* A Service's name has 63 characters at most. */ -}}
{{- define "kvpool.webhookName" -}}
{{- printf "%s-webhook" (include "kvpool.fullname" . | trunc 55 | trimSuffix "-") }}
{{- end }}

{{- define "kvpool.leaseRoleName" -}}
{{- printf "%s-lease" (include "kvpool.fullname" .) }}
{{- end }}

{{- /* Releases of several namespaces have such a Role in the namespace default. */ -}}
{{- define "kvpool.apiServersName" -}}
{{- printf "%s-%s-api-servers" .Release.Namespace (include "kvpool.fullname" .) }}
{{- end }}

{{- define "kvpool.webhook" -}}
enabled: {{ .Values.webhook.enabled }}
configuration: {{ include "kvpool.fullname" . }}
namespace: {{ .Release.Namespace }}
secret: {{ include "kvpool.webhookName" . }}
names:
  - {{ include "kvpool.webhookName" . }}.{{ .Release.Namespace }}.svc
  {{- with .Values.webhook.url }}
  - {{ (urlParse .).hostname }}
  {{- end }}
{{- end }}

{{- /* What the operator may do. Each line says why; the same rules in a ClusterRole or in a Role for each namespace. */ -}}
{{- define "kvpool.rules" -}}
# The pools themselves are only read; what the operator has to say goes to their status.
- apiGroups: [kvpool.dev]
  resources: [kvcachepools]
  verbs: [get, list, watch]
- apiGroups: [kvpool.dev]
  resources: [kvcachepools/status]
  verbs: [patch]
# Passwords and hash seeds: made once, never read back by anyone but the operator and the Pods that mount them. "get"
# also covers the Secret that a pool with an external store refers to. Kubernetes can't limit list and watch by label;
# the operator asks only for Secrets that carry its own label. Set watchNamespaces to limit the namespaces.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# Configuration files, and the Services of stores and engines.
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
# Stores and engines, and LMCache's server on each node.
- apiGroups: [apps]
  resources: [daemonsets, deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
# To enlarge the claims of a store or an engine in place, and to keep them when their StatefulSet is replaced under its Pods.
# No claim is ever deleted.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, patch]
# Drains that leave a store of several servers able to serve, and stores without authentication shut to others.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# To say why an engine does not start (image, memory, GPU), and which Pods of others use a pool or were missed. The watch is
# on Pods that carry the operator's label.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# To say on a pool that Pods of others wait for a restart.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# To see whether a namespace takes the pools that are to be shared with it (annotation kvpool.dev/accepts-pools).
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
# KubeRay copies a RayService's annotations to its RayCluster, but not to Pods.
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get]
# Of an LLMInferenceService's own annotations KServe copies a few prefixes only.
- apiGroups: [serving.kserve.io]
  resources: [llminferenceservices]
  verbs: [get]
{{- end }}

{{- define "kvpool.webhookClient" -}}
{{- if .root.Values.webhook.url -}}
url: {{ printf "%s%s" .root.Values.webhook.url .path | quote }}
{{- else -}}
service:
  name: {{ include "kvpool.webhookName" .root }}
  namespace: {{ .root.Release.Namespace }}
  path: {{ .path }}
  port: 443
{{- end }}
{{- end }}

{{- define "kvpool.webhookCommon" -}}
failurePolicy: Ignore
reinvocationPolicy: IfNeeded
matchPolicy: Equivalent
sideEffects: None
timeoutSeconds: {{ .Values.webhook.timeoutSeconds }}
admissionReviewVersions: [v1]
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{ toJson (prepend .Values.webhook.excludedNamespaces "kube-system") }}
    {{- with .Values.watchNamespaces }}
    - key: kubernetes.io/metadata.name
      operator: In
      values: {{ toJson . }}
    {{- end }}
{{- end }}

{{- /* Kinds of which pools have children, by group: what the admission policy confines. */ -}}
{{- define "kvpool.childResources" -}}
core: [configmaps, secrets, services]
apps: [daemonsets, deployments, statefulsets]
networking.k8s.io: [networkpolicies]
policy: [poddisruptionbudgets]
{{- end }}

{{- /* Whether the API server has ValidatingAdmissionPolicies. Of a cluster Helm knows the kinds, "v1/Pod" among them; without one
(helm template) it knows none unless it is told by --api-versions, and the version decides: they are in 1.30. */ -}}
{{- define "kvpool.admissionPolicyServed" -}}
{{- $versions := .Capabilities.APIVersions }}
{{- $knowsKinds := $versions.Has "v1/Pod" }}
{{- $isNew := semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}
{{- if or ($versions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy") (and $isNew (not $knowsKinds)) -}}
true
{{- end }}
{{- end }}
