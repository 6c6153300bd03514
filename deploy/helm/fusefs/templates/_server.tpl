{{/* Services, settings, volumes, StatefulSet and PDB of a server role:
     (dict "root" $ "role" "master" "values" .Values.masters). */}}
{{- define "fusefs.server" -}}
{{- $root := .root }}{{ $role := .role }}{{ $v := .values }}
{{- $full := include "fusefs.fullname" .root }}
{{- $name := printf "%s-%s" $full $role }}
{{- $ns := .root.Release.Namespace }}
{{- $ids := dict "root" $root "component" $role }}
{{- if and $v.clusterIPs (ne (len $v.clusterIPs) (int $v.replicas)) }}
{{- fail (printf "%ss.clusterIPs needs one address per replica (%d)" $role (int $v.replicas)) }}
{{- end }}
{{- if and (eq $v.storage.type "hostPath") (ne (len $v.storage.hostPaths) (int $v.replicas)) }}
{{- fail (printf "%ss.storage.hostPaths needs one {node, path} per replica (%d)" $role (int $v.replicas)) }}
{{- end }}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ $ns }}
  labels:
    {{- include "fusefs.labels" $ids | nindent 4 }}
spec:
  clusterIP: None
  # Masters elect a leader, and metanodes recover, before they are ready.
  publishNotReadyAddresses: true
  selector:
    {{- include "fusefs.selector" $ids | nindent 4 }}
  ports:
    - {name: grpc, port: {{ $v.port }}, targetPort: grpc, protocol: TCP}
{{- range $i, $ip := $v.clusterIPs }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}-{{ $i }}
  namespace: {{ $ns }}
  labels:
    {{- include "fusefs.labels" $ids | nindent 4 }}
spec:
  type: ClusterIP
  clusterIP: {{ $ip | quote }}
  publishNotReadyAddresses: true
  selector:
    {{- include "fusefs.selector" $ids | nindent 4 }}
    statefulset.kubernetes.io/pod-name: {{ $name }}-{{ $i }}
  ports:
    - {name: grpc, port: {{ $v.port }}, targetPort: grpc, protocol: TCP}
{{- end }}
{{- if $v.clusterIPs }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  namespace: {{ $ns }}
  labels:
    {{- include "fusefs.labels" $ids | nindent 4 }}
data:
  {{- range $i, $ip := $v.clusterIPs }}
  {{ $name }}-{{ $i }}.toml: |
    advertise = {{ include "fusefs.hostPort" (dict "host" $ip "port" $v.port) | quote }}
  {{- end }}
{{- end }}
{{- if eq $v.storage.type "hostPath" }}
{{- range $i, $at := $v.storage.hostPaths }}
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: {{ $name }}-{{ $i }}
  labels:
    {{- include "fusefs.labels" $ids | nindent 4 }}
spec:
  capacity: {storage: {{ $v.storage.size }}}
  accessModes:
    {{- toYaml $v.storage.accessModes | nindent 4 }}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: {{ $ns }}, name: data-{{ $name }}-{{ $i }}}
  hostPath: {path: {{ $at.path | quote }}, type: DirectoryOrCreate}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: kubernetes.io/hostname, operator: In, values: [{{ $at.node | quote }}]}
{{- end }}
{{- end }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  namespace: {{ $ns }}
  labels:
    {{- include "fusefs.labels" $ids | nindent 4 }}
  {{- with $v.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceName: {{ $name }}
  replicas: {{ $v.replicas }}
  # All at once: a quorum is needed before any is ready. Updates go one by one all the same.
  podManagementPolicy: Parallel
  updateStrategy: {type: RollingUpdate}
  minReadySeconds: 5
  {{- if ne $v.storage.type "emptyDir" }}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: {{ $v.storage.whenDeleted }}, whenScaled: Retain}
  {{- end }}
  selector:
    matchLabels:
      {{- include "fusefs.selector" $ids | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "fusefs.podLabels" (merge (dict "extra" $v.podLabels) $ids) | nindent 8 }}
      {{- with $v.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ $full }}-{{ ternary "master" "server" (eq $role "master") }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
      {{- include "fusefs.pullSecrets" $root | nindent 6 }}
      {{- include "fusefs.placement" $v | nindent 6 }}
      {{- include "fusefs.spread" (merge (dict "affinity" $v.affinity) $ids) | nindent 6 }}
      securityContext:
        {{- toYaml $v.podSecurityContext | nindent 8 }}
      {{- if eq $v.storage.type "hostPath" }}
      initContainers:
        # kubelet does not give directories of the node to the pod's user.
        - name: own-data
          image: {{ include "fusefs.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [/bin/chown, "{{ int64 $v.podSecurityContext.runAsUser }}:{{ int64 $v.podSecurityContext.runAsGroup }}", /data]
          securityContext:
            runAsUser: 0
            runAsNonRoot: false
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL], add: [CHOWN]}
          volumeMounts:
            - {name: data, mountPath: /data}
      {{- end }}
      containers:
        - name: {{ $role }}
          image: {{ include "fusefs.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [{{ $role }}]
          env:
            {{- include "fusefs.logEnv" $root | nindent 12 }}
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: FUSEFS_LISTEN, value: "{{ $v.listen }}:{{ $v.port }}"}
            - {name: FUSEFS_DATA_DIR, value: /data}
            {{- if $v.clusterIPs }}
            - {name: FUSEFS_CONFIG, value: /etc/fusefs/config/$(POD_NAME).toml}
            {{- else }}
            - {name: FUSEFS_ADVERTISE, value: "$(POD_NAME).{{ $name }}.{{ $ns }}.svc.{{ $root.Values.clusterDomain }}:{{ $v.port }}"}
            {{- end }}
            {{- if eq $role "master" }}
            - {name: FUSEFS_PEERS, value: {{ include "fusefs.addresses" . | quote }}}
            - {name: FUSEFS_TOKEN_FILE, value: /etc/fusefs/token/token}
            - {name: FUSEFS_CREDENTIALS_DIR, value: /etc/fusefs/credentials}
            {{- else }}
            {{- include "fusefs.clusterEnv" $root | nindent 12 }}
            {{- with $v.failureDomainField }}
            - {name: FUSEFS_HOST, valueFrom: {fieldRef: {fieldPath: {{ . | quote }}}}}
            {{- end }}
            {{- with $v.capacityBytes }}
            - {name: FUSEFS_CAPACITY, value: {{ . | int64 | quote }}}
            {{- end }}
            {{- if dig "limits" "memory" "" $v.resources }}
            - {name: FUSEFS_MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: "1"}}}
            {{- end }}
            {{- end }}
            {{- with $v.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: grpc, containerPort: {{ $v.port }}, protocol: TCP}
          # Replaying a long log takes its time.
          startupProbe:
            httpGet: {path: /healthz, port: grpc}
            periodSeconds: 2
            timeoutSeconds: 3
            failureThreshold: 300
          livenessProbe:
            httpGet: {path: /healthz, port: grpc}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: grpc}
            periodSeconds: 2
            timeoutSeconds: 3
            failureThreshold: 3
          resources:
            {{- toYaml $v.resources | nindent 12 }}
          securityContext:
            {{- include "fusefs.unprivileged" $root | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
            {{- include "fusefs.tokenMount" $root | nindent 12 }}
            {{- if $v.clusterIPs }}
            - {name: config, mountPath: /etc/fusefs/config, readOnly: true}
            {{- end }}
            {{- if eq $role "master" }}
            {{- range $root.Values.stores }}
            {{- if or .existingSecret .accessKey }}
            - {name: store-{{ .name }}, mountPath: /etc/fusefs/credentials/{{ .name }}, readOnly: true}
            {{- end }}
            {{- end }}
            {{- end }}
      volumes:
        {{- include "fusefs.tokenVolume" $root | nindent 8 }}
        {{- if $v.clusterIPs }}
        - name: config
          configMap: {name: {{ $name }}}
        {{- end }}
        {{- if eq $v.storage.type "emptyDir" }}
        - name: data
          emptyDir: {}
        {{- end }}
        {{- if eq $role "master" }}
        {{- range $root.Values.stores }}
        {{- if or .existingSecret .accessKey }}
        - name: store-{{ .name }}
          secret:
            secretName: {{ .existingSecret | default (printf "%s-store-%s" $full .name) }}
            defaultMode: 288 # 0440
            items:
              - {key: {{ .accessKeyField | default "access_key" }}, path: access_key}
              - {key: {{ .secretKeyField | default "secret_key" }}, path: secret_key}
              {{- with .sessionTokenField }}
              - {key: {{ . }}, path: session_token}
              {{- end }}
        {{- end }}
        {{- end }}
        {{- end }}
  {{- if ne $v.storage.type "emptyDir" }}
  volumeClaimTemplates:
    - apiVersion: v1
      kind: PersistentVolumeClaim
      metadata:
        name: data
        labels:
          {{- include "fusefs.selector" $ids | nindent 10 }}
          app.kubernetes.io/part-of: fusefs
      spec:
        accessModes:
          {{- toYaml $v.storage.accessModes | nindent 10 }}
        {{- if eq $v.storage.type "hostPath" }}
        storageClassName: ""
        {{- else if ne $v.storage.storageClassName nil }}
        storageClassName: {{ $v.storage.storageClassName | quote }}
        {{- end }}
        resources: {requests: {storage: {{ $v.storage.size }}}}
  {{- end }}
{{- if $v.pdb.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ $ns }}
  labels:
    {{- include "fusefs.labels" $ids | nindent 4 }}
spec:
  maxUnavailable: {{ $v.pdb.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "fusefs.selector" $ids | nindent 6 }}
{{- end }}
{{- end }}
