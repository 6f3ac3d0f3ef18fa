package integration

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// With --metrics-authorization, the API server decides who reads /metrics.
func TestMetricsAuthorization(t *testing.T) {
	g, err := solepod.Start(t.Context(), plane, solepod.Options{
		Values: []string{"metrics.authorization=true"},
		Args:   []string{"--metrics-authorization", "--memory-limit=1000000000"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := g.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(g.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	get := func(scheme, authorization string) (status int, body string, err error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+g.MetricsAddress+"/metrics", nil)
		if err != nil {
			return 0, "", err
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return 0, "", err
		}
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text), errors.Join(err, resp.Body.Close())
	}
	const account, namespace = "scraper", "metrics-authorization"
	w := newWorld(t, namespace)
	scraper, err := plane.ServiceAccount(t.Context(), w.jobs, account)
	if err != nil {
		t.Fatal(err)
	}
	token := "Bearer " + scraper.BearerToken
	for name, c := range map[string]struct {
		authorization string
		status        int
		text          string
	}{
		"no token":          {"", http.StatusUnauthorized, "want the header Authorization"},
		"another scheme":    {"Basic " + scraper.BearerToken, http.StatusUnauthorized, "want the header Authorization"},
		"a false token":     {"Bearer x", http.StatusUnauthorized, "rejects this token"},
		"may not read them": {token, http.StatusForbidden, "system:serviceaccount:" + w.jobs + ":scraper may not get /metrics: bind the ClusterRole solepod-metrics"},
	} {
		status, text, err := get("https", c.authorization)
		if err != nil || status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d, %v: %s", name, status, err, text)
		}
	}
	if status, text, err := get("http", token); err == nil && status == http.StatusOK {
		t.Errorf("without TLS: %d: %s", status, text)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "solepod-metrics"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: w.jobs, Name: account}},
	}
	if err := plane.Admin.Create(t.Context(), binding); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		status, text, err := get("https", token)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d: %w: %s", status, err, text)
		}
		// Nine tenths of --memory-limit.
		limit, err := controlplane.Sum([]byte(text), "go_gc_gomemlimit_bytes", nil)
		if err == nil && limit != 900_000_000 {
			t.Errorf("the memory limit of the collector is %.0f", limit)
		}
		return err
	})
}

// With foreignAccess and injection Off, the API server does not call solepod for what
// it would admit in any case.
func TestHooksThatAreOff(t *testing.T) {
	const config = "apiVersion: solepod.io/v1alpha1\nkind: Configuration\nforeignAccess: \"Off\"\ninjection: \"Off\"\n"
	g := shared.Own(t, plane, solepod.Options{
		Config: config, Values: []string{"config.foreignAccess=Off", "config.injection=Off"},
	})
	w := newWorld(t, "hooks-off")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	pod := w.mustCreate(alpha, "x airflow-environment=alpha")
	if _, err := w.create(production, "y airflow-environment=production"); err == nil {
		t.Error("a duplicate was admitted")
	}
	if err := production.Delete(t.Context(), pod); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/access", "/stamp"} {
		if calls, err := g.Calls(t.Context(), path); err != nil || calls > 0 {
			t.Errorf("%s was called %d times, %v", path, calls, err)
		}
	}
}
