package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

// Source provides the serving certificate.
type Source interface {
	// GetCertificate implements the function of the same name in a [tls.Config].
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Cache returns what the manager must cache for SetupWithManager.
	Cache() map[client.Object]cache.ByObject
	// SetupWithManager makes this replica serve the certificate while the manager runs.
	SetupWithManager(context.Context, manager.Manager) error
	// SetupLeader makes the leader renew the certificate. The client is uncached.
	SetupLeader(manager.Manager, client.Client) error
}

// Files returns a source for tls.crt and tls.key in a directory. It reloads them when
// they change. It fails if they do not exist.
func Files(dir string) (Source, error) {
	watcher, err := certwatcher.New(filepath.Join(dir, corev1.TLSCertKey), filepath.Join(dir, corev1.TLSPrivateKeyKey))
	return files{watcher}, err
}

type files struct{ *certwatcher.CertWatcher }

func (files) Cache() map[client.Object]cache.ByObject { return nil }

func (f files) SetupWithManager(_ context.Context, mgr manager.Manager) error {
	return mgr.Add(f.CertWatcher)
}

func (files) SetupLeader(manager.Manager, client.Client) error { return nil } // others renew the files

// Expiry returns a metric: the time at which the certificate of a source expires, in
// seconds since 1970, or 0 if there is none.
func Expiry(source Source) prometheus.Collector {
	return timestamp(source, "solepod_certificate_expiration_timestamp_seconds",
		"Time at which the serving certificate expires, in seconds since 1970.",
		func(leaf *x509.Certificate) time.Time { return leaf.NotAfter })
}

// Renewal returns a metric: the time at which the certificate of a source should be
// renewed, in seconds since 1970, or 0 if there is none. That is when a third of its
// life is left, which is also the default of cert-manager.
func Renewal(source Source) prometheus.Collector {
	return timestamp(source, "solepod_certificate_renewal_timestamp_seconds",
		"Time at which the serving certificate should be renewed, in seconds since 1970.",
		func(leaf *x509.Certificate) time.Time {
			return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
		})
}

func timestamp(source Source, name, help string, of func(*x509.Certificate) time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		pair, err := source.GetCertificate(nil)
		if err != nil {
			return 0
		}
		return float64(of(pair.Leaf).Unix())
	})
}

// Clients are the clients that the webhook serves. If CAFile is set, a client needs a
// certificate of one of its CAs, with a common name of Names, unless Names is empty.
// Otherwise, any client is served, as by most webhooks.
type Clients struct {
	// CAFile is reloaded for each connection.
	CAFile string
	Names  []string
}

// TLS configures a server for TLS 1.3 and HTTP/1.1 only. API servers use HTTP/1.1 for
// Services, to spread their calls over the replicas (https://issue.k8s.io/75791).
// Without HTTP/2, clients cannot exhaust the server with streams that they reset.
func TLS(source Source, clients Clients) func(*tls.Config) {
	return func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS13
		c.NextProtos = []string{"http/1.1"}
		c.GetCertificate = source.GetCertificate
		if clients.CAFile == "" {
			return
		}
		// A client without a certificate gets an HTTP response that explains it.
		c.ClientAuth = tls.VerifyClientCertIfGiven
		base := c.Clone()
		c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			pool, err := cert.NewPool(clients.CAFile)
			if err != nil {
				return nil, fmt.Errorf("reading --client-ca-file: %w", err)
			}
			own := base.Clone()
			own.ClientCAs = pool
			return own, nil
		}
	}
}

// Server returns a server whose hooks serve these clients only.
func (c Clients) Server(server webhook.Server) webhook.Server {
	if c.CAFile == "" {
		return server
	}
	return guarded{server, c}
}

type guarded struct {
	webhook.Server
	clients Clients
}

func (g guarded) Register(path string, hook http.Handler) {
	g.Server.Register(path, g.clients.requireClient(hook))
}

func (c Clients) requireClient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		problem := ""
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			problem = "solepod serves API servers only: no client certificate"
		} else if name := r.TLS.PeerCertificates[0].Subject.CommonName; len(c.Names) > 0 && !slices.Contains(c.Names, name) {
			problem = fmt.Sprintf("solepod serves API servers only: the client certificate is for %q, want %s", name, strings.Join(c.Names, " or "))
		}
		if problem == "" {
			next.ServeHTTP(w, r)
			return
		}
		log.FromContext(r.Context()).Info("Refused a review", "address", r.RemoteAddr, "reason", problem)
		http.Error(w, problem, http.StatusForbidden)
	})
}
