{{- define "fusefs.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}{{ end }}
{{- end }}

{{/* Labels that selectors use: (dict "root" $ "component" "master"). */}}
{{- define "fusefs.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of an object: (dict "root" $ "component" "master"). */}}
{{- define "fusefs.labels" -}}
{{ include "fusefs.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: fusefs
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods: as objects, without what changes with every chart version. */}}
{{- define "fusefs.podLabels" -}}
{{ include "fusefs.selector" . }}
app.kubernetes.io/part-of: fusefs
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An image reference: (dict "image" .Values.image "tag" default). */}}
{{- define "fusefs.imageOf" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}
{{- else }}{{ .image.repository }}:{{ .image.tag | default .tag }}{{ end }}
{{- end }}

{{- define "fusefs.image" -}}
{{ include "fusefs.imageOf" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end }}

{{- define "fusefs.tokenSecret" -}}
{{ .Values.token.existingSecret | default (printf "%s-token" (include "fusefs.fullname" .)) }}
{{- end }}

{{/* Addresses that others dial, separated by commas: (dict "root" $ "role" "master" "values" .Values.masters). */}}
{{- define "fusefs.addresses" -}}
{{- $full := include "fusefs.fullname" .root }}
{{- $role := .role }}{{ $port := .values.port }}{{ $root := .root }}
{{- $out := list }}
{{- if .values.clusterIPs }}
{{- range .values.clusterIPs }}{{ $out = append $out (include "fusefs.hostPort" (dict "host" . "port" $port)) }}{{ end }}
{{- else }}
{{- range $i := until (int .values.replicas) }}
{{- $out = append $out (printf "%s-%s-%d.%s-%s.%s.svc.%s:%d" $full $role $i $full $role $root.Release.Namespace $root.Values.clusterDomain (int $port)) }}
{{- end }}
{{- end }}
{{- join "," $out }}
{{- end }}

{{- define "fusefs.hostPort" -}}
{{- if contains ":" .host }}[{{ .host }}]{{ else }}{{ .host }}{{ end }}:{{ int .port }}
{{- end }}

{{/* The masters as every client dials them. */}}
{{- define "fusefs.masters" -}}
{{- if .Values.masters.addresses }}{{ join "," .Values.masters.addresses }}
{{- else if .Values.masters.enabled }}{{ include "fusefs.addresses" (dict "root" . "role" "master" "values" .Values.masters) }}
{{- else }}{{ fail "masters.addresses is required when masters.enabled is false" }}{{ end }}
{{- end }}

{{- define "fusefs.logEnv" -}}
- {name: FUSEFS_LOG, value: {{ .Values.log.filter | quote }}}
{{- if .Values.log.json }}
- {name: FUSEFS_LOG_JSON, value: "true"}
{{- end }}
{{- end }}

{{- define "fusefs.clusterEnv" -}}
- {name: FUSEFS_MASTER, value: {{ include "fusefs.masters" . | quote }}}
- {name: FUSEFS_TOKEN_FILE, value: /etc/fusefs/token/token}
{{- end }}

{{- define "fusefs.tokenMount" -}}
- {name: token, mountPath: /etc/fusefs/token, readOnly: true}
{{- end }}

{{- define "fusefs.tokenVolume" -}}
- name: token
  secret:
    secretName: {{ include "fusefs.tokenSecret" . }}
    defaultMode: 288 # 0440
    items: [{key: {{ .Values.token.key }}, path: token}]
{{- end }}

{{/* Access to the API server for single containers of a pod without automounted token. */}}
{{- define "fusefs.apiMount" -}}
- {name: api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}
{{- define "fusefs.apiVolume" -}}
- name: api
  projected:
    defaultMode: 292 # 0444
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]}
{{- end }}

{{/* A container without any right. */}}
{{- define "fusefs.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "fusefs.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Placement of a pod: values with nodeSelector, tolerations, affinity, priorityClassName. */}}
{{- define "fusefs.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Affinity as given, or: not two of a component on one node where possible. */}}
{{- define "fusefs.spread" -}}
affinity:
{{- if .affinity }}
  {{- toYaml .affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "fusefs.selector" . | nindent 14 }}
{{- end }}
{{- end }}

{{/* A sidecar: (dict "root" $ "name" "provisioner" "args" list). */}}
{{- define "fusefs.sidecar" -}}
{{- $s := get .root.Values.csi.sidecars .name }}
image: {{ include "fusefs.imageOf" (dict "image" $s.image "tag" "") | quote }}
imagePullPolicy: {{ $s.image.pullPolicy }}
args:
  - --csi-address=/csi/csi.sock
  - --v=2
  {{- range concat .args $s.extraArgs }}
  - {{ . | quote }}
  {{- end }}
resources:
  {{- toYaml $s.resources | nindent 2 }}
securityContext:
  {{- include "fusefs.unprivileged" . | nindent 2 }}
{{- end }}
