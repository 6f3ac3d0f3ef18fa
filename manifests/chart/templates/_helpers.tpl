{{- /* A cluster has one installation, so all its objects are named solepod. */ -}}

{{- define "solepod.labels" -}}
app.kubernetes.io/name: solepod
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "solepod.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "solepod.config" -}}
apiVersion: solepod.io/v1alpha1
kind: Configuration
{{ toYaml .Values.config }}
{{- end -}}

{{- /* The clientConfig of a hook: dict "root" $ "path" "/guard". */ -}}
{{- define "solepod.clientConfig" -}}
clientConfig:
  service:
    name: solepod
    namespace: {{ .root.Release.Namespace }}
    path: {{ .path }}
  {{- if eq .root.Values.certificates.mode "Provided" }}
  caBundle: {{ required "certificates.caBundle is empty: want the CA certificates that verify yours, PEM (--set-file certificates.caBundle=ca.crt)" .root.Values.certificates.caBundle | b64enc }}
  {{- end }}
{{- end -}}

{{- define "solepod.namespaceSelector" -}}
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{ append .Values.excludedNamespaces .Release.Namespace | uniq | toJson }}
    {{- with .Values.namespaceExpressions }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "solepod.taskPods" -}}
- {key: kubernetes_pod_operator, operator: In, values: ["True"]}
- {key: dag_id, operator: Exists}
- {key: task_id, operator: Exists}
{{- end -}}

{{- define "solepod.notAControllersPod" -}}
# The pods of a Job share their labels on purpose.
- name: not-a-controllers-pod
  expression: >-
    !has(object.metadata.ownerReferences) ||
    !object.metadata.ownerReferences.exists(r, has(r.controller) && r.controller) ||
    has(object.metadata.annotations) && 'solepod.io/created-by' in object.metadata.annotations
{{- end -}}

{{- define "solepod.accessConditions" -}}
# Nodes, controllers and schedulers have no environment.
- name: not-the-system
  expression: >-
    !request.userInfo.username.startsWith('system:') ||
    request.userInfo.username.startsWith('system:serviceaccount:') &&
    !request.userInfo.username.startsWith('system:serviceaccount:kube-system:')
- name: not-solepod
  expression: request.userInfo.username != 'system:serviceaccount:{{ .Release.Namespace }}:solepod'
{{- end -}}

{{- define "solepod.caInjection" -}}
{{- if eq .Values.certificates.mode "CertManager" }}
annotations:
  cert-manager.io/inject-ca-from: {{ .Release.Namespace }}/solepod
{{- end }}
{{- end -}}

{{- /* "true" unless a setting is Off, which YAML may read as false. A hook that does
nothing is not registered: it would cost each request a call. */ -}}
{{- define "solepod.on" -}}
{{- not (has (toString .) (list "Off" "false")) -}}
{{- end -}}
