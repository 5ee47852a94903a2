{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
{{- end }}

{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The agent's configuration: the user's, and what follows from the chart's other values. */ -}}
{{- define "weft.config" -}}
{{- $source := dict "type" "kube" -}}
{{- with .Values.apiServer }}{{- $_ := set $source "apiServer" . }}{{- end -}}
{{- $paths := omit .Values.paths "netns" -}}
{{- mergeOverwrite (deepCopy .Values.config) (dict "source" $source "cni" .Values.cni "paths" $paths) | toYaml -}}
{{- end }}
