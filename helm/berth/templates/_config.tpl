{{/* The file of each process of a node: what the chart knows, and over it what the values say. */}}
{{- define "berth.nodeConfig" -}}
{{- $manager := include "berth.managerSocket" . -}}
{{- $run := .Values.paths.run -}}
sandbox-manager.toml: |
  {{- $own := dict
    "run_dir" $run
    "state_dir" .Values.paths.state
    "log_dir" .Values.paths.log
    "socket" (printf "%s/manager.sock" $run)
    "containerd" (dict "address" .Values.containerd.socket) }}
  {{- if .Values.manager.registrySecretName }}
  {{- $_ := set $own "pull" (dict "credentials_file" "/etc/berth-registry/.dockerconfigjson") }}
  {{- end }}
  {{- with .Values.access.tls }}
  {{- if .secretName }}
  {{- $_ := set $own "tls" (dict
    "listen" .listen
    "certificate" (printf "%s/tls.crt" .mountPath)
    "key" (printf "%s/tls.key" .mountPath)
    "client_ca" (printf "%s/ca.crt" .mountPath)) }}
  {{- end }}
  {{- end }}
  {{- include "berth.settings" (dict "root" . "own" $own "port" 9464 "given" .Values.manager.config) | nindent 2 }}
{{- if .Values.dns.enabled }}
dns.toml: |
  {{- $own := dict "manager" $manager "socket" (printf "%s/dns.sock" $run) "state_dir" (printf "%s/dns" .Values.paths.state) }}
  {{- include "berth.settings" (dict "root" . "own" $own "port" 9465 "given" .Values.dns.config) | nindent 2 }}
{{- end }}
{{- if .Values.metrics.enabled }}
metrics.toml: |
  {{- $own := dict "manager" $manager "socket" (printf "%s/metrics.sock" $run) }}
  {{- include "berth.settings" (dict "root" . "own" $own "port" 9466 "given" .Values.metrics.config) | nindent 2 }}
{{- end }}
{{- if .Values.watchdog.enabled }}
watchdog.toml: |
  {{- $own := dict "manager_address" $manager "socket" (printf "%s/watchdog.sock" $run) }}
  {{- include "berth.settings" (dict "root" . "own" $own "port" 9467 "given" .Values.watchdog.config) | nindent 2 }}
{{- end }}
{{- if .Values.imageGc.enabled }}
image-gc.toml: |
  {{- $own := dict
    "manager_address" $manager
    "socket" (printf "%s/image-gc.sock" $run)
    "data_path" .Values.containerd.rootDir
    "blob_dir" (printf "%s/registry/blobs" .Values.paths.state)
    "collect_blobs" false }}
  {{- include "berth.settings" (dict "root" . "own" $own "port" 9468 "given" .Values.imageGc.config) | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes `root`, the chart's `own` settings, the `port` for Prometheus and what is `given`. */}}
{{- define "berth.settings" -}}
{{- $own := .own -}}
{{- if .root.Values.prometheus.enabled -}}
{{- $_ := set $own "telemetry" (dict "prometheus_address" (printf "127.0.0.1:%d" (int .port))) -}}
{{- end -}}
{{- include "berth.toml" (dict "prefix" "" "values" (mergeOverwrite $own (deepCopy .given))) | trim -}}
{{- end }}
