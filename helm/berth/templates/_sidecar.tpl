{{/* Folders of containerd that are mounted, each once, as JSON. */}}
{{- define "berth.containerdDirs" -}}
{{- append .Values.containerd.stateDirs (dir .Values.containerd.socket) | uniq | sortAlpha | toJson -}}
{{- end }}

{{/*
A container beside the manager, as little privileged as it can be: root, whom the sockets of a node belong to, without
the rights of root. Takes `root`, `process`, `values`, `port`, and where there are any `capabilities` and `mounts`.
*/}}
{{- define "berth.sidecar" -}}
{{- $root := .root -}}
{{- $run := $root.Values.paths.run -}}
- name: {{ .process }}
  image: {{ include "berth.image" (dict "root" $root "process" .process) }}
  imagePullPolicy: {{ $root.Values.images.pullPolicy }}
  args: ["--config", "/etc/berth/{{ .process }}.toml"]
  env:
    {{- include "berth.env" $root | nindent 4 }}
    {{- with .values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    runAsUser: 0
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
      {{- with .capabilities }}
      add: {{ toRawJson . }}
      {{- end }}
    seccompProfile: {type: RuntimeDefault}
  {{- with include "berth.ports" (dict "root" $root "name" .process "port" .port) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "berth.probes" (dict "socket" (printf "%s/%s.sock" $run .process) "ready" "manager") | nindent 2 }}
  resources: {{- toYaml .values.resources | nindent 4 }}
  volumeMounts:
    - {name: config, mountPath: /etc/berth, readOnly: true}
    - {name: run, mountPath: {{ $run }}}
    {{- with .mounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
