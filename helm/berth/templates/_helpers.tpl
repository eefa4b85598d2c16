{{- define "berth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* What every object is called, with room for what is put behind it. */}}
{{- define "berth.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "berth.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "berth.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "berth.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "berth.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: berth
{{- end }}

{{- define "berth.selectorLabels" -}}
app.kubernetes.io/name: {{ include "berth.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "berth.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "berth.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The image of a process. Takes `root` and `process`. */}}
{{- define "berth.image" -}}
{{- $images := .root.Values.images -}}
{{ printf "%s/%s:%s" $images.registry .process (default .root.Chart.AppVersion $images.tag) }}
{{- end }}

{{/*
A map as TOML, one key on a line, tables as dotted keys. JSON's texts, numbers, truth values and lists of these are TOML's
too; a number is never written as a float that it is not. Takes `values` and `prefix`.
*/}}
{{- define "berth.toml" -}}
{{- $prefix := .prefix -}}
{{- range $key, $value := .values -}}
{{- $path := printf "%s%s" $prefix (ternary $key (toRawJson $key) (regexMatch "^[A-Za-z0-9_-]+$" $key)) -}}
{{- if kindIs "map" $value -}}
{{- include "berth.toml" (dict "prefix" (printf "%s." $path) "values" $value) -}}
{{- else if kindIs "slice" $value -}}
{{- range $value -}}
{{- if or (kindIs "map" .) (kindIs "slice" .) (kindIs "invalid" .) -}}
{{- fail (printf "%s: a list of a setting holds texts, numbers or truth values only" $path) -}}
{{- end -}}
{{- end -}}
{{ $path }} = {{ toRawJson $value }}
{{ else if not (kindIs "invalid" $value) -}}
{{ $path }} = {{ toRawJson $value }}
{{ end -}}
{{- end -}}
{{- end }}

{{/* Address of the manager on the node. */}}
{{- define "berth.managerSocket" -}}
unix:{{ .Values.paths.run }}/manager.sock
{{- end }}

{{/* Ports for Prometheus. The port is the node's, so a second pod that has it is not put there. Takes `root`, `name` and `port`. */}}
{{- define "berth.ports" -}}
{{- if .root.Values.prometheus.enabled -}}
ports:
  - {name: {{ .name }}, containerPort: {{ .port }}, hostPort: {{ .port }}, hostIP: 127.0.0.1, protocol: TCP}
{{- end }}
{{- end }}

{{- define "berth.env" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- $otel := .Values.otel }}
{{- if $otel }}
{{- if not (hasKey $otel "OTEL_RESOURCE_ATTRIBUTES") }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.node.name=$(NODE_NAME),k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE)
{{- end }}
{{- range $name, $value := $otel }}
- name: {{ $name }}
  value: {{ ternary $value (toRawJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Probes of a process. Takes `socket` and the `ready` service: what must serve before the process counts as ready. */}}
{{- define "berth.probes" -}}
{{- $ask := list "/usr/bin/berth" "health" "--timeout" "4s" "--address" (printf "unix:%s" .socket) -}}
startupProbe:
  exec: {command: {{ toRawJson $ask }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 90
livenessProbe:
  exec: {command: {{ toRawJson $ask }}}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  exec: {command: {{ toRawJson (concat $ask (list "--service" .ready)) }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}
