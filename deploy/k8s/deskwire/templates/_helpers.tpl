{{/* Names begin with the release's; `deskwire` itself isn't repeated. */}}
{{- define "deskwire.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "deskwire.selector" -}}
app.kubernetes.io/name: deskwire
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "deskwire.labels" -}}
{{ include "deskwire.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: deskwire
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* What is the same for all services. A map, since it is written as a ConfigMap for the pods, and as env for the
     migration Jobs, which run before the ConfigMap exists. */}}
{{- define "deskwire.settings" -}}
{{- $name := include "deskwire.fullname" . -}}
DESKWIRE_GRPC_LISTEN: "0.0.0.0:7401"
DESKWIRE_METRICS_LISTEN: "0.0.0.0:7421"
DESKWIRE_WS_LISTEN: "0.0.0.0:7400"
DESKWIRE_KAFKA: {{ .Values.kafka.bootstrap | quote }}
DESKWIRE_KEYS_FILE: /etc/deskwire/keys/keys.json
DESKWIRE_OTLP_ENDPOINT: {{ .Values.telemetry.otlpEndpoint | quote }}
DESKWIRE_TRACE_SAMPLE_RATIO: {{ .Values.telemetry.traceSampleRatio | quote }}
DESKWIRE_LOG_LEVEL: {{ .Values.logLevel | quote }}
DESKWIRE_DRAIN_SECONDS: {{ .Values.drainSeconds | quote }}
DESKWIRE_ATTACHMENTS_URL: {{ .Values.attachments.url | quote }}
DESKWIRE_ATTACHMENTS_LISTEN: "0.0.0.0:7406"
DESKWIRE_ATTACHMENTS_PUBLIC_URL: {{ .Values.attachments.publicUrl | quote }}
DESKWIRE_ATTACHMENTS_CORS_ORIGINS: {{ .Values.attachments.corsOrigins | quote }}
DESKWIRE_ADAPTER_TARGETS: {{ .Values.targets.adapters | quote }}
DESKWIRE_PYTHON_ADAPTERS: {{ .Values.targets.pythonAdapters | quote }}
DESKWIRE_ADAPTER_SECRETS: {{ .Values.targets.adapterSecrets | quote }}
DESKWIRE_WEBHOOK_TARGETS: {{ .Values.targets.webhooks | quote }}
DESKWIRE_SOURCE_TARGETS: {{ .Values.targets.sources | quote }}
{{- if .Values.keys.sealing }}
DESKWIRE_SEALING_FILE: /etc/deskwire/keys/sealing.keys
{{- end }}
DESKWIRE_CHAT_TARGET: {{ printf "%s-chat:7401" $name | quote }}
{{- if .Values.tls.enabled }}
DESKWIRE_TLS_CERT: /etc/deskwire/tls/tls.crt
DESKWIRE_TLS_KEY: /etc/deskwire/tls/tls.key
DESKWIRE_TLS_CA: /etc/deskwire/tls/ca.crt
{{- else }}
DESKWIRE_ALLOW_PLAINTEXT: "true"
{{- end }}
{{- end -}}

{{/* Secrets of one service: (dict "root" $ "service" "chat"). */}}
{{- define "deskwire.secretEnv" -}}
{{- if eq .service "gateway" -}}
- name: DESKWIRE_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.redis.existingSecret }}
      key: url
{{- else -}}
- name: DESKWIRE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.databases.existingSecret }}
      key: {{ .service }}
{{- end -}}
{{- if and (eq .service "chat") .root.Values.attachments.existingSecret }}
- name: DESKWIRE_ATTACHMENTS_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.attachments.existingSecret }}
      key: access-key
- name: DESKWIRE_ATTACHMENTS_SECRET_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.attachments.existingSecret }}
      key: secret-key
{{- end -}}
{{- end -}}

{{/* Whether chat pods serve attachments from a folder. */}}
{{- define "deskwire.servesFiles" -}}
{{- if hasPrefix "file:" .Values.attachments.url -}}yes{{- end -}}
{{- end -}}

{{- define "deskwire.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .service (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}

{{/* What pods and Jobs share: (dict "root" $ "service" "chat"). */}}
{{- define "deskwire.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
volumes:
  - name: tmp
    emptyDir: {}
  - name: keys
    secret:
      secretName: {{ .root.Values.keys.existingSecret }}
      defaultMode: 0440
  {{- if .root.Values.tls.enabled }}
  - name: tls
    secret:
      secretName: {{ .root.Values.tls.existingSecret }}
      defaultMode: 0440
  {{- end }}
  {{- if and (eq .service "chat") (include "deskwire.servesFiles" .root) }}
  - name: attachments
    persistentVolumeClaim:
      claimName: {{ .root.Values.attachments.existingClaim }}
  {{- end }}
{{- end -}}

{{- define "deskwire.containerBasics" -}}
image: {{ include "deskwire.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
  # As directories, not with subPath: a changed secret must show, since keys rotate without a restart.
  - name: keys
    mountPath: /etc/deskwire/keys
    readOnly: true
  {{- if .root.Values.tls.enabled }}
  - name: tls
    mountPath: /etc/deskwire/tls
    readOnly: true
  {{- end }}
  {{- if and (eq .service "chat") (include "deskwire.servesFiles" .root) }}
  - name: attachments
    mountPath: /var/lib/deskwire/attachments
  {{- end }}
{{- end -}}

{{/* kubelet's gRPC probe speaks no TLS: with TLS the service asks itself. */}}
{{- define "deskwire.probe" -}}
{{- if .Values.tls.enabled -}}
exec:
  command: [python, -m, deskwire_common.probe]
timeoutSeconds: 5
{{- else -}}
grpc:
  port: 7401
timeoutSeconds: 3
{{- end -}}
{{- end -}}

{{/* A pod: (dict "root" $ "service" "chat" "values" .Values.services.chat). */}}
{{- define "deskwire.podTemplate" -}}
metadata:
  labels:
    {{- include "deskwire.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .service }}
  annotations:
    # Settings are read at start: other settings, other pods.
    checksum/settings: {{ include "deskwire.settings" .root | sha256sum }}
    {{- if .root.Values.metrics.annotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "7421"
    {{- end }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "deskwire.fullname" .root }}
  {{- include "deskwire.podBasics" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ add .root.Values.drainSeconds 15 }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "deskwire.selector" .root | nindent 10 }}
          app.kubernetes.io/component: {{ .service }}
  containers:
    - name: {{ .service }}
      {{- include "deskwire.containerBasics" . | nindent 6 }}
      args: [serve]
      envFrom:
        - configMapRef:
            name: {{ include "deskwire.fullname" .root }}
      env:
        {{- include "deskwire.secretEnv" . | nindent 8 }}
        {{- if eq .service "chat" }}
        # The place of a pod outlives the pod: its next life takes its partitions over at once.
        - name: DESKWIRE_SHARD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- end }}
        {{- if has .service (list "chat" "events") }}
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        # The other pods, and gateways those of chat, call this one by itself; its certificate has the service's name.
        - name: DESKWIRE_ADVERTISE
          value: "$(POD_IP):7401"
        - name: DESKWIRE_PEER_NAME
          value: {{ printf "%s-%s" (include "deskwire.fullname" .root) .service | quote }}
        {{- end }}
      ports:
        - name: grpc
          containerPort: 7401
        - name: metrics
          containerPort: 7421
        {{- if eq .service "gateway" }}
        - name: websocket
          containerPort: 7400
        {{- end }}
        {{- if and (eq .service "chat") (include "deskwire.servesFiles" .root) }}
        - name: files
          containerPort: 7406
        {{- end }}
      # NOT_SERVING until warm: configuration, schema, broker, database. Two minutes for that.
      startupProbe:
        {{- include "deskwire.probe" .root | nindent 8 }}
        periodSeconds: 2
        failureThreshold: 60
      readinessProbe:
        {{- include "deskwire.probe" .root | nindent 8 }}
        periodSeconds: 5
        failureThreshold: 2
      # The loop turns: it answers at all, whatever its dependencies do.
      livenessProbe:
        tcpSocket:
          port: metrics
        periodSeconds: 10
        timeoutSeconds: 3
        failureThreshold: 6
      lifecycle:
        # Until endpoints and ingresses have forgotten the pod.
        preStop:
          sleep:
            seconds: 5
      resources:
        {{- toYaml .values.resources | nindent 8 }}
{{- end -}}
