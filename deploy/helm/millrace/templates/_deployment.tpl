{{/* millrace.deployment is the Deployment of a service. Takes (root, name). */}}
{{- define "millrace.deployment" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $service := index $values .name -}}
{{- $isWorker := eq .name "worker" -}}
{{- $settings := include "millrace.settings" . | fromYaml -}}
{{- $secrets := include "millrace.secrets" . | fromYaml -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "millrace.fullname" $root }}-{{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "millrace.labels" . | nindent 4 }}
  {{- with $service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if ne (include "millrace.isScaled" .) "true" }}
  replicas: {{ int $service.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  strategy:
    {{- toYaml $service.strategy | nindent 4 }}
  selector:
    matchLabels:
      {{- include "millrace.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "millrace.podLabels" . | nindent 8 }}
        {{- with $service.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $service.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "millrace.serviceAccountName" $root }}
      automountServiceAccountToken: false
      # Else every Service of the namespace becomes variables, which could have the names of settings.
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "millrace.grace" . }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.podSecurityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $service.priorityClassName }}
      priorityClassName: {{ . | quote }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ include "millrace.image" (dict "root" $root "image" $service.image) | quote }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          args: [{{ .name }}]
          {{- with $values.securityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            {{- if not $isWorker }}
            - name: http
              containerPort: {{ eq .name "api" | ternary 8080 8081 }}
              protocol: TCP
            {{- range $service.extraPorts }}
            - name: {{ .name }}
              containerPort: {{ int (default .port .targetPort) }}
              protocol: {{ default "TCP" .protocol }}
            {{- end }}
            {{- end }}
            - name: metrics
              containerPort: 8082
              protocol: TCP
          env:
            {{- range $k, $v := $settings }}
            - name: {{ $k }}
              value: {{ $v | quote }}
            {{- end }}
            {{- with $secrets }}
            {{- include "millrace.secretEnv" . | trim | nindent 12 }}
            {{- end }}
            {{- if ne .name "api" }}{{/* the API makes a limit of its own from its settings */}}
            {{- with include "millrace.goMemLimit" (dig "limits" "memory" "" $service.resources) }}
            - name: GOMEMLIMIT
              value: {{ . }}
            {{- end }}
            {{- end }}
            {{- with $service.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $service.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- if $isWorker }}
          # A worker that waits for its servers, or migrates, is alive.
          startupProbe:
            httpGet: {path: /health, port: metrics}
            periodSeconds: 1
            failureThreshold: 60
          {{- else }}
          # A new pod gets requests once it can do its work: a version that can't is not rolled out. It is not killed for
          # that, because its servers may be away: a day is as good as for ever.
          startupProbe:
            httpGet: {path: /ready, port: metrics}
            periodSeconds: 1
            timeoutSeconds: 3
            failureThreshold: 86400
          {{- end }}
          livenessProbe:
            httpGet: {path: /health, port: metrics}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: {{ $service.readinessPath }}, port: metrics}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 2
          {{- with $service.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- $mounts := include "millrace.mounts" . | fromYaml }}
          {{- with concat $mounts.mounts $service.extraVolumeMounts }}
          volumeMounts:
            {{- toYaml . | nindent 12 }}
          {{- end }}
        {{- with $service.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with concat $mounts.volumes $service.extraVolumes }}
      volumes:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $service.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $service.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $service.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $service.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- toYaml $service.topologySpreadConstraints | nindent 8 }}
      {{- else if $service.spread }}
      topologySpreadConstraints:
        {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          # The pods of one version among themselves: else those that go would count.
          matchLabelKeys: [pod-template-hash]
          labelSelector:
            matchLabels:
              {{- include "millrace.selector" $ | nindent 14 }}
        {{- end }}
      {{- end }}
{{- end -}}

{{/* millrace.mounts is the volumes of a service and where they are mounted, as YAML. Folders are mounted, never single files:
those would stay as they were when the Secret changes. Takes (root, name). */}}
{{- define "millrace.mounts" -}}
{{- $values := .root.Values -}}
{{- $service := index $values .name -}}
{{- $secrets := list -}}
{{- if ne .name "worker" -}}
{{- if $values.keys.secret }}{{ $secrets = append $secrets (list "keys" $values.keys.secret) }}{{ end -}}
{{- if $service.tls.secret }}{{ $secrets = append $secrets (list "tls" $service.tls.secret) }}{{ end -}}
{{- if $service.tls.clientCASecret }}{{ $secrets = append $secrets (list "client-ca" $service.tls.clientCASecret) }}{{ end -}}
{{- end -}}
{{- if eq .name "query" -}}
{{- if $service.searches.secret }}{{ $secrets = append $secrets (list "searches" $service.searches.secret) }}{{ end -}}
{{- end -}}
{{- $volumes := list -}}
{{- $mounts := list -}}
{{- range $secrets -}}
{{- $volumes = append $volumes (dict "name" (first .) "secret" (dict "secretName" (last .) "defaultMode" 0444)) -}}
{{- $mounts = append $mounts (dict "name" (first .) "mountPath" (printf "/etc/millrace/%s" (first .)) "readOnly" true) -}}
{{- end -}}
{{- if and $values.archive.existingClaim (ne .name "api") -}}
{{- $volumes = append $volumes (dict "name" "archive" "persistentVolumeClaim" (dict "claimName" $values.archive.existingClaim)) -}}
{{- $mounts = append $mounts (dict "name" "archive" "mountPath" "/var/lib/millrace/archive" "readOnly" (eq .name "query")) -}}
{{- end -}}
{{- dict "volumes" $volumes "mounts" $mounts | toYaml -}}
{{- end -}}
