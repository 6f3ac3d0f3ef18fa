package install

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/check"
	"github.com/solepod/solepod/test/fixture"
)

// The commands in README.md install solepod.
func TestReadme(t *testing.T) {
	c := newCluster(t)
	content, err := os.ReadFile(filepath.Join(c.root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile("(?s)\n## Install\n.*?\n```\n(.*?)```\n").FindSubmatch(content)
	if section == nil {
		t.Fatal("README.md has no commands in a section Install")
	}
	t.Logf("%s", c.mustSh(string(section[1])))
	c.green()
	c.guarded("readme")
	for _, pod := range c.kubelet.Running() {
		if text, err := metrics(t.Context(), pod); err != nil || !bytes.Contains(text, []byte("\nsolepod_certificate_expiration_timestamp_seconds 1.")) {
			t.Errorf("the metrics of %s (%v) have no time of expiry", pod.Name, err)
		}
	}
}

// install.yaml, whose namespace admits restricted pods only.
func TestApply(t *testing.T) {
	c := newCluster(t)
	c.mustSh("kubectl apply -f manifests/install.yaml && kubectl label namespace airflow-alpha airflow-environment=alpha && kubectl rollout status --namespace solepod-system deployment solepod --timeout=2m")
	c.called()
	c.green()
	c.guarded("apply")
	before := caBundles(t)
	c.mustSh("kubectl apply -f manifests/install.yaml")
	if got := caBundles(t); got != before {
		t.Error("applying the manifests again took the caBundle away")
	}
	l := startLoad(t, 2)
	c.mustSh(documented(t, c, "docs/install.md", "kubectl delete --ignore-not-found -f"))
	l.end(t)
}

// documented is the block of commands in a document that has a text.
func documented(t *testing.T, c *cluster, file, text string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(c.root, file))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```$").FindAllStringSubmatch(string(content), -1) {
		if strings.Contains(block[1], text) {
			return block[1]
		}
	}
	t.Fatalf("%s has no commands with %q", file, text)
	return ""
}

func caBundles(t *testing.T) string {
	t.Helper()
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	for _, object := range []client.Object{&mutating, &validating} {
		if err := plane.Admin.Get(t.Context(), client.ObjectKey{Name: "solepod"}, object); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%s %s", mutating.Webhooks[0].ClientConfig.CABundle, validating.Webhooks[0].ClientConfig.CABundle)
}

// Install, upgrade with other values, roll back, uninstall: task pods are
// created all the time, and nothing is left behind.
func TestLifecycle(t *testing.T) {
	c := newCluster(t)
	c.install("")
	bundles, secret := caBundles(t), c.mustSh("kubectl get secret --namespace solepod-system solepod-tls -o jsonpath='{.data}'")
	if !strings.Contains(secret, "tls.key") {
		t.Fatalf("the Secret has %s", secret)
	}
	c.guarded("installed")

	l := startLoad(t, 2)
	c.mustSh("helm upgrade solepod manifests/chart --namespace solepod-system --wait --set config.enforcement=Warn --set timeoutSeconds=7")
	fixture.Eventually(t, func() error { // replicas that leave answer to the end
		return plane.Admin.Create(t.Context(), taskPod("installed", "warned"))
	})
	c.mustSh("helm rollback solepod --namespace solepod-system --wait")
	fixture.Eventually(t, func() error {
		pod := taskPod("installed", "")
		pod.GenerateName = "denied-"
		if err := plane.Admin.Create(t.Context(), pod); !apierrors.IsForbidden(err) {
			return fmt.Errorf("a duplicate: %w", err)
		}
		return nil
	})
	c.guarded("rolled-back")
	if caBundles(t) != bundles || c.mustSh("kubectl get secret --namespace solepod-system solepod-tls -o jsonpath='{.data}'") != secret {
		t.Error("the upgrade or the rollback changed the certificates")
	}
	c.green()
	c.mustSh(documented(t, c, "docs/install.md", "helm uninstall"))
	l.end(t)

	left := c.mustSh(`kubectl get clusterrole,clusterrolebinding,validatingwebhookconfiguration,mutatingwebhookconfiguration,flowschema,prioritylevelconfiguration,namespace -o name | grep solepod || true`)
	if left != "" {
		t.Errorf("this is left:\n%s", left)
	}
}

// Certificates of a lifetime so short that generations follow one another, CA
// and all, while pods are created.
func TestRotation(t *testing.T) {
	c := newCluster(t)
	c.install("--set certificates.lifetime=30s")
	generations := 4
	if testing.Short() {
		generations = 2
	}
	served := map[string]bool{}
	l := startLoad(t, 2)
	for len(served) < generations {
		fixture.Eventually(t, func() error {
			before := len(served)
			got, err := serials(t.Context(), c.kubelet.Running())
			for _, serial := range got {
				served[serial] = true
			}
			if err == nil && len(served) == before {
				err = fmt.Errorf("%d certificates were served", before)
			}
			return err
		})
	}
	l.end(t)
}

func serialAt(ctx context.Context, address string) (string, error) {
	// Which certificate it is, not whether it is trusted, is the question.
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // see above
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	state := conn.(*tls.Conn).ConnectionState()
	return state.PeerCertificates[0].SerialNumber.String(), conn.Close()
}

// A certificate of the user in the Secret, and its CA in the values. solepod does not
// repair it.
func TestProvided(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	secret := func(name string) {
		c.mustSh("cd " + dir + " && kubectl create secret tls solepod-tls --namespace solepod-system --dry-run=client -o yaml " + pair(t, dir, name) + " | kubectl apply -f -")
	}
	const host = "solepod.solepod-system.svc"
	c.mustSh("kubectl create namespace solepod-system")
	secret(host)
	c.install("--set certificates.mode=Provided --set-file certificates.caBundle=" + filepath.Join(dir, "ca.crt"))
	c.green()
	c.guarded("provided")
	for fault, name := range map[string]string{"by another CA": host, "for another name": "solepod.elsewhere.svc"} {
		secret(name)
		results, err := c.results("")
		if err != nil {
			t.Fatal(err)
		}
		if got := results["ca-bundle"]; got.Status != check.Failed {
			t.Errorf("a certificate %s: %+v", fault, got)
		}
	}
	if results, err := c.results("--system-namespace elsewhere"); err != nil || results["deployment"].Status != check.Failed {
		t.Errorf("in a namespace without solepod: %+v %v", results["deployment"], err)
	}
	if out, err := c.sh(t.Context(), "KUBECONFIG=/nowhere solepod check"); err == nil || !strings.Contains(out, "--kubeconfig") {
		t.Errorf("without a cluster: %v %s", err, out)
	}
}

// pair writes a certificate for a name, and the flags of kubectl for it.
func pair(t *testing.T, dir, name string) string {
	t.Helper()
	crt, key, err := cert.GenerateSelfSignedCertKey(name, nil, []string{name})
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{"tls.crt": crt, "ca.crt": crt, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return "--cert=tls.crt --key=tls.key"
}

// The objects of cert-manager are accepted by its CRDs. What cert-manager does
// with them the test does in its stead.
func TestCertManager(t *testing.T) {
	c := newCluster(t)
	var module struct{ Dir string }
	if err := json.Unmarshal([]byte(c.mustSh("go mod download -json github.com/cert-manager/cert-manager@$(go list -m -f '{{.Version}}' github.com/cert-manager/cert-manager)")), &module); err != nil {
		t.Fatal(err)
	}
	crds := filepath.Join(module.Dir, "deploy", "crds")
	c.mustSh("kubectl apply --server-side -f " + crds + " && kubectl wait --for=condition=Established crd certificates.cert-manager.io issuers.cert-manager.io --timeout=1m")
	t.Cleanup(func() {
		if _, err := c.sh(context.Background(), "kubectl delete -f "+crds); err != nil {
			t.Error(err)
		}
	})
	c.mustSh("kubectl apply -f manifests/install-cert-manager.yaml && kubectl label namespace airflow-alpha airflow-environment=alpha")

	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	if err := cmapi.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(plane.Config, client.Options{Scheme: types})
	if err != nil {
		t.Fatal(err)
	}
	var certificate cmapi.Certificate
	if err := admin.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "solepod"}, &certificate); err != nil {
		t.Fatal(err)
	}
	if out, _ := c.sh(t.Context(), "solepod check"); !strings.Contains(out, "cert-manager has not processed Certificate") {
		t.Errorf("nothing of a certificate that is not issued:\n%s", out)
	}
	dir := t.TempDir()
	if !slices.Equal(certificate.Spec.DNSNames, []string{"solepod.solepod-system.svc"}) {
		t.Errorf("the certificate is for %v", certificate.Spec.DNSNames)
	}
	c.mustSh("cd " + dir + " && kubectl create secret tls --namespace solepod-system " + certificate.Spec.SecretName + " " + pair(t, dir, certificate.Spec.DNSNames[0]))
	inject(t, admin, dir)
	certificate.Status.Conditions = []cmapi.CertificateCondition{{Type: cmapi.CertificateConditionReady, Status: cmmeta.ConditionTrue, LastTransitionTime: &metav1.Time{Time: time.Now()}}}
	if err := admin.Status().Update(t.Context(), &certificate); err != nil {
		t.Fatal(err)
	}
	c.mustSh("kubectl rollout status --namespace solepod-system deployment solepod --timeout=2m")
	c.called()
	c.green()
	c.guarded("cert-manager")
}

// inject is the CA injector's part.
func inject(t *testing.T, admin client.Client, dir string) {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	for _, object := range []client.Object{&mutating, &validating} {
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "solepod"}, object); err != nil {
			t.Fatal(err)
		}
		if got := object.GetAnnotations()[cmapi.WantInjectAnnotation]; got != namespace+"/solepod" {
			t.Errorf("the CA is to be injected from %q", got)
		}
		for i := range mutating.Webhooks {
			mutating.Webhooks[i].ClientConfig.CABundle = ca
		}
		for i := range validating.Webhooks {
			validating.Webhooks[i].ClientConfig.CABundle = ca
		}
		if err := admin.Update(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}
