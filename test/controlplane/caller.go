package controlplane

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Caller is whose certificate the API server shows webhooks.
const Caller = "kube-apiserver"

// admissionConfiguration is the file of --admission-control-config-file; the
// path is that of a kubeconfig.
const admissionConfiguration = `
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: MutatingAdmissionWebhook
    configuration: &webhooks
      apiVersion: apiserver.config.k8s.io/v1
      kind: WebhookAdmissionConfiguration
      kubeConfigFile: %s
  - name: ValidatingAdmissionWebhook
    configuration: *webhooks
`

func (c *ControlPlane) callerFile(extension string) string {
	return filepath.Join(c.Dir, "caller"+extension)
}

// configureCaller writes files that have the API server show a certificate, and
// returns the path of the one to start it with. The certificate is read when it
// calls a webhook for the first time.
func (c *ControlPlane) configureCaller() (string, error) {
	out := clientcmdapi.NewConfig()
	out.AuthInfos["*"] = &clientcmdapi.AuthInfo{ClientCertificate: c.callerFile(".crt"), ClientKey: c.callerFile(".key")}
	if err := clientcmd.WriteToFile(*out, c.callerFile(".kubeconfig")); err != nil {
		return "", err
	}
	return c.callerFile(".yaml"), os.WriteFile(c.callerFile(".yaml"), fmt.Appendf(nil, admissionConfiguration, c.callerFile(".kubeconfig")), 0o600)
}

// writeCaller writes the certificate, which only an API server that runs issues.
func (c *ControlPlane) writeCaller() error {
	user, err := c.User(Caller)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.callerFile(".crt"), user.CertData, 0o600); err != nil {
		return err
	}
	return os.WriteFile(c.callerFile(".key"), user.KeyData, 0o600)
}
