{{- define "gvList" -}}
<!-- Generated from pkg/config by make docs. -->
# The configuration file

The file given by `solepod serve --config`. A file with nothing but these two
lines has all the defaults; an unknown field or value is an error, and solepod
does not start. The configuration in effect is in the first line of its log.

```yaml
apiVersion: solepod.io/v1alpha1
kind: Configuration
```
{{ range . }}
{{- range .SortedTypes }}{{ if .GVK }}{{ template "type" . }}{{ end }}{{ end }}
{{- range .SortedTypes }}{{ if not .GVK }}{{ template "type" . }}{{ end }}{{ end }}
{{- end }}
{{- end -}}

{{- define "type" -}}
{{- if markdownShouldRenderType . }}
## {{ .Name }}

{{ .Doc }}
{{ if .Members }}
| Field | Description |
| --- | --- |
{{- range .Members }}
| `{{ .Name }}` _{{ markdownRenderType .Type }}_ | {{ markdownRenderFieldDoc .Doc }} |
{{- end }}
{{ end -}}
{{- if .EnumValues }}
| Value | Description |
| --- | --- |
{{- range .EnumValues }}
| `{{ .Name }}` | {{ markdownRenderFieldDoc .Doc }} |
{{- end }}
{{ end -}}
{{- end -}}
{{- end -}}
