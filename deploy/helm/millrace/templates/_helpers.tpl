{{/* millrace.fullname is the beginning of all names. */}}
{{- define "millrace.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* millrace.selector is the labels that find a service's pods. They never change: a Deployment's selector can't. Takes (root, name). */}}
{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{/* millrace.labels is the labels of an object. Takes (root, name). */}}
{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* millrace.podLabels is the labels of pods: without the versions, so that a new chart alone restarts nothing. Takes (root, name). */}}
{{- define "millrace.podLabels" -}}
{{ include "millrace.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "millrace.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "millrace.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* millrace.image is the image of a service. Takes (root, image), image with the tag and the digest of the service alone. */}}
{{- define "millrace.image" -}}
{{- $all := .root.Values.image -}}
{{- $name := $all.repository -}}
{{- with $all.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else if .image.tag -}}
{{- printf "%s:%s" $name .image.tag -}}
{{- else if $all.digest -}}
{{- printf "%s@%s" $name $all.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $all.tag) -}}
{{- end -}}
{{- end -}}

{{/* millrace.text is a value as a variable has it. YAML's numbers come as floats: 1000000 must not become 1e+06. */}}
{{- define "millrace.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* millrace.settings is the settings of a service that are no secrets, as YAML. Takes (root, name). */}}
{{- define "millrace.settings" -}}
{{- $values := .root.Values -}}
{{- $service := index $values .name -}}
{{- $known := index (.root.Files.Get "files/settings.yaml" | fromYaml) .name -}}
{{- $secrets := include "millrace.secrets" . | fromYaml -}}
{{- $out := dict -}}
{{- if eq .name "worker" -}}
{{- $_ := set $out "ALLOW_ANONYMOUS" "true" -}}{{/* it has nothing but metrics and health */}}
{{- $_ := set $out "WORKER_ADDR" ":8082" -}}
{{- if $values.migrate.hook }}{{ $_ := set $out "AUTO_MIGRATE" "false" }}{{ end -}}
{{- else -}}
{{- $prefix := upper .name -}}
{{- $_ := set $out (printf "%s_ADDR" $prefix) (eq .name "api" | ternary ":8080" ":8081") -}}
{{- $_ := set $out (printf "%s_METRICS_ADDR" $prefix) ":8082" -}}
{{- if $values.keys.secret }}{{ $_ := set $out "KEYS_FILE" (printf "/etc/millrace/keys/%s" $values.keys.key) }}{{ end -}}
{{- if $service.tls.secret -}}
{{- $_ := set $out "TLS_CERT_FILE" "/etc/millrace/tls/tls.crt" -}}
{{- $_ := set $out "TLS_KEY_FILE" "/etc/millrace/tls/tls.key" -}}
{{- if $service.tls.clientCASecret }}{{ $_ := set $out "TLS_CLIENT_CA_FILE" (printf "/etc/millrace/client-ca/%s" $service.tls.clientCAKey) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if eq .name "query" -}}
{{- if $service.searches.secret }}{{ $_ := set $out "SEARCHES_FILE" (printf "/etc/millrace/searches/%s" $service.searches.key) }}{{ end -}}
{{- end -}}
{{- if and $values.archive.existingClaim (has "ARCHIVE_URL" $known) }}{{ $_ := set $out "ARCHIVE_URL" "file:///var/lib/millrace/archive" }}{{ end -}}
{{- range $given := list $values.settings $service.settings -}}
{{- range $k, $v := $given -}}
{{- if and (has $k $known) (not (kindIs "invalid" $v)) (not (and (eq $k "ALLOW_ANONYMOUS") (eq $.name "worker"))) -}}
{{- $_ := set $out $k (include "millrace.text" $v) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $k, $_ := $secrets }}{{ $_ := unset $out $k }}{{ end -}}
{{- toYaml $out -}}
{{- end -}}

{{/* millrace.secrets is the secret settings of a service, each with the name and key of its Secret, as YAML. Takes (root, name). */}}
{{- define "millrace.secrets" -}}
{{- $known := index (.root.Files.Get "files/settings.yaml" | fromYaml) "secrets" .name -}}
{{- $out := dict -}}
{{- range $given := list .root.Values.secrets (index .root.Values .name).secrets -}}
{{- range $k, $v := $given -}}
{{- if and (has $k $known) (not (kindIs "invalid" $v)) }}{{ $_ := set $out $k $v }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toYaml $out -}}
{{- end -}}

{{/* millrace.secretEnv is variables from Secrets. Takes a map of name to (name, key). */}}
{{- define "millrace.secretEnv" -}}
{{- range $k, $v := . }}
- name: {{ $k }}
  valueFrom:
    secretKeyRef:
      name: {{ $v.name | quote }}
      key: {{ $v.key | quote }}
{{- end }}
{{- end -}}

{{/* millrace.seconds is a duration such as 1m30s in whole seconds, rounded up. */}}
{{- define "millrace.seconds" -}}
{{- $sum := 0.0 -}}
{{- $units := dict "ns" 0.000000001 "us" 0.000001 "µs" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 "w" 604800.0 -}}
{{- range regexFindAll "[0-9.]+(ns|us|µs|ms|s|m|h|d|w)" (toString .) -1 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- $sum = addf $sum (mulf (float64 $number) (index $units (trimPrefix $number .))) -}}
{{- end -}}
{{- ceil $sum | int64 -}}
{{- end -}}

{{/* millrace.grace is how many seconds a service may take to stop: longer than SHUTDOWN_DELAY and SHUTDOWN_TIMEOUT. Takes (root, name). */}}
{{- define "millrace.grace" -}}
{{- $service := index .root.Values .name -}}
{{- if $service.terminationGracePeriodSeconds -}}
{{- int64 $service.terminationGracePeriodSeconds -}}
{{- else -}}
{{- $settings := include "millrace.settings" . | fromYaml -}}
{{- $delay := include "millrace.seconds" (default "500ms" $settings.SHUTDOWN_DELAY) -}}
{{- if eq .name "worker" }}{{ $delay = "0" }}{{ end -}}
{{- $timeout := include "millrace.seconds" (default "30s" $settings.SHUTDOWN_TIMEOUT) -}}
{{- add (int64 $delay) (int64 $timeout) 10 -}}
{{- end -}}
{{- end -}}

{{/* millrace.goMemLimit is nine tenths of a memory limit in MiB, for Go's collector; nothing where there is no limit. */}}
{{- define "millrace.goMemLimit" -}}
{{- $text := toString . -}}
{{- $units := dict "" 1.0 "k" 1000.0 "Ki" 1024.0 "M" 1000000.0 "Mi" 1048576.0 "G" 1000000000.0 "Gi" 1073741824.0 "T" 1000000000000.0 "Ti" 1099511627776.0 -}}
{{- if regexMatch "^[0-9.]+(k|Ki|M|Mi|G|Gi|T|Ti)?$" $text -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- divf (mulf (float64 $number) (index $units (trimPrefix $number $text)) 0.9) 1048576.0 | floor | int64 }}MiB
{{- end -}}
{{- end -}}

{{/* millrace.check fails, with what to do, for values that the schema can't refuse. Takes the root. */}}
{{- define "millrace.check" -}}
{{- range $name := list "api" "worker" "query" -}}
{{- $service := index $.Values $name -}}
{{- if $service.enabled -}}
{{- $scope := dict "root" $ "name" $name -}}
{{- $settings := include "millrace.settings" $scope | fromYaml -}}
{{- $secrets := include "millrace.secrets" $scope | fromYaml -}}
{{- $extra := dict -}}
{{- range $service.extraEnv }}{{ $_ := set $extra .name true }}{{ end -}}
{{- $needs := dict "api" (list "RABBITMQ_URL") "worker" (list "RABBITMQ_URL" "POSTGRES_URL") "query" (list "POSTGRES_URL") -}}
{{- range $need := index $needs $name -}}
{{- if not (or (hasKey $secrets $need) (hasKey $extra $need) $service.extraEnvFrom) -}}
{{- fail (printf "%s needs %s: name the Secret and the key that hold it, as in secrets: {%s: {name: SECRET, key: KEY}}" $name $need $need) -}}
{{- end -}}
{{- end -}}
{{- if and (ne $name "worker") (not $settings.KEYS_FILE) (ne (toString $settings.ALLOW_ANONYMOUS) "true") (not (hasKey $extra "ALLOW_ANONYMOUS")) (not $service.extraEnvFrom) -}}
{{- fail (printf "%s would serve everybody in the cluster without a key: name the Secret of the keys (keys.secret), or say settings: {ALLOW_ANONYMOUS: true}" $name) -}}
{{- end -}}
{{- if ne $name "worker" -}}
{{- if and $service.tls.clientCASecret (not $service.tls.secret) }}{{ fail (printf "%s.tls.clientCASecret needs %s.tls.secret" $name $name) }}{{ end -}}
{{- if and $service.autoscaling.enabled (gt (int $service.autoscaling.minReplicas) (int $service.autoscaling.maxReplicas)) }}{{ fail (printf "%s.autoscaling: minReplicas is more than maxReplicas" $name) }}{{ end -}}
{{- if and $service.httpRoute.enabled (not $service.httpRoute.parentRefs) }}{{ fail (printf "%s.httpRoute.parentRefs is empty: name the Gateway" $name) }}{{ end -}}
{{- end -}}
{{- if and $service.terminationGracePeriodSeconds -}}
{{- $least := add (include "millrace.seconds" (default "30s" $settings.SHUTDOWN_TIMEOUT) | int64) (include "millrace.seconds" (eq $name "worker" | ternary "0s" (default "500ms" $settings.SHUTDOWN_DELAY)) | int64) -}}
{{- if le (int64 $service.terminationGracePeriodSeconds) $least }}{{ fail (printf "%s.terminationGracePeriodSeconds: the pod would be killed before it has stopped: SHUTDOWN_DELAY and SHUTDOWN_TIMEOUT are %d seconds" $name $least) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* millrace.replicas is how many pods of a service there are at least. Takes (root, name). */}}
{{- define "millrace.replicas" -}}
{{- $service := index .root.Values .name -}}
{{- if eq .name "worker" -}}
{{- if $service.keda.enabled }}{{ int $service.keda.minReplicas }}{{ else }}{{ int $service.replicas }}{{ end -}}
{{- else if $service.autoscaling.enabled -}}
{{- int $service.autoscaling.minReplicas -}}
{{- else -}}
{{- int $service.replicas -}}
{{- end -}}
{{- end -}}

{{/* millrace.isScaled is true if a scaler decides how many pods there are. Takes (root, name). */}}
{{- define "millrace.isScaled" -}}
{{- $service := index .root.Values .name -}}
{{- if eq .name "worker" }}{{ $service.keda.enabled }}{{ else }}{{ $service.autoscaling.enabled }}{{ end -}}
{{- end -}}
