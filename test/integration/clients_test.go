package integration

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/webhook"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/solepod"
)

// With a client CA, API servers are answered as ever, and strangers claim
// nothing.
func TestClientCA(t *testing.T) {
	w := newWorld(t, "client-ca")
	// Run has the API server call both hooks.
	g := shared.Own(t, plane, solepod.Options{Args: []string{"--client-ca-file=" + plane.ClientCA, "--client-allowed-names=" + controlplane.Caller}})
	claims := func() []coordinationv1.Lease {
		t.Helper()
		return solepod.Claims(t, plane, client.MatchingLabels{claim.LabelNamespace: w.jobs})
	}

	of := func(name string) *tls.Certificate {
		user, err := plane.User(name)
		if err != nil {
			t.Fatal(err)
		}
		return keyPair(t, user.CertData, user.KeyData)
	}
	dir := t.TempDir()
	certificate := renew(t, dir)
	another := keyPair(t, certificate, []byte(read(t, filepath.Join(dir, "tls.key"))))
	for name, tc := range map[string]struct {
		certificate *tls.Certificate
		want        string
	}{
		"no certificate":      {nil, "403 solepod serves API servers only: no client certificate"},
		"one by another CA":   {another, "remote error: tls: "},
		"one of another name": {of("stranger"), `403 solepod serves API servers only: the client certificate is for "stranger"`},
	} {
		for _, path := range []string{webhook.StampPath, webhook.GuardPath, webhook.AccessPath} {
			if got := ask(t, g, path, tc.certificate, review(t, w.pod("forged"))); !strings.Contains(got, tc.want) {
				t.Errorf("%s at %s: %s, want %s", name, path, got, tc.want)
			}
		}
	}
	if found := claims(); len(found) > 0 {
		t.Errorf("strangers have %d claims", len(found))
	}

	w.mustCreate(w.airflow("alpha"), "x")
	if _, err := w.create(w.airflow("production"), "y"); err == nil || !strings.Contains(err.Error(), "DuplicateEnvironment") {
		t.Errorf("a duplicate: %v", err)
	}
	if found := claims(); len(found) != 1 {
		t.Errorf("%d claims, want that of x", len(found))
	}
	// The same call with the API server's certificate is one that is answered.
	if got := ask(t, g, webhook.GuardPath, of(controlplane.Caller), review(t, w.pod("z"))); !strings.HasPrefix(got, "200 ") {
		t.Errorf("with the certificate of an API server: %s", got)
	}
}

func keyPair(t *testing.T, certificate, key []byte) *tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// ask posts a review with a certificate, if there is one, and returns the
// status and the body of the answer, or the error.
func ask(t *testing.T, g *solepod.Process, path string, certificate *tls.Certificate, body []byte) string {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(g.CA)
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	if certificate != nil {
		// Certificates would omit a certificate that the server does not request.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+g.Address+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err.Error()
	}
	answer, err := io.ReadAll(resp.Body)
	if closeErr := resp.Body.Close(); err != nil || closeErr != nil {
		t.Fatal(err, closeErr)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, answer)
}
