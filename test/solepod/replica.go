package solepod

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	"github.com/solepod/solepod/test/controlplane"
)

// Replica is a solepod serve.
type Replica struct {
	*controlplane.Process
	// Address is the host:port at which this replica serves the webhook.
	Address string
	// HealthAddress is the host:port of /healthz and /readyz.
	HealthAddress string
	// MetricsAddress is the host:port of /metrics.
	MetricsAddress string

	// api is how the replica reaches the API server, or the proxy before it.
	api   *link
	proxy *proxy
	args  []string
	log   string
}

// newReplica prepares a replica whose files are in dir.
func (g *Process) newReplica(ctx context.Context, binary, dir, address string, o Options) (*Replica, error) {
	r := &Replica{Address: address, log: filepath.Join(dir, "log")}
	for _, free := range []*string{&r.HealthAddress, &r.MetricsAddress} {
		var err error
		if *free, err = controlplane.FreeAddress(ctx, "127.0.0.1"); err != nil {
			return nil, err
		}
	}
	server, err := url.Parse(o.Identity.Host)
	if err != nil {
		return nil, err
	}
	identity := rest.CopyConfig(o.Identity)
	if o.Faults {
		if r.proxy, err = newProxy(ctx, o.Identity, g.CertDir, r.DropAPI); err != nil {
			return nil, err
		}
		server.Host, identity.CAData = r.proxy.Addr().String(), g.CA
	}
	if r.api, err = newLink(ctx, server.Host); err != nil {
		return nil, err
	}
	if !o.Direct {
		identity.Host = "https://" + r.api.Addr().String()
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := controlplane.WriteKubeconfig(identity, kubeconfig); err != nil {
		return r, err
	}
	r.args = []string{
		binary,
		"serve",
		"--kubeconfig=" + kubeconfig,
		"--namespace=" + Namespace, // the former name of --system-namespace: versions before it run, too
		"--leader-elect",
		"--webhook-bind-address=" + r.Address,
		"--cert-dir=" + g.CertDir,
		"--metrics-bind-address=" + r.MetricsAddress,
		"--health-probe-bind-address=" + r.HealthAddress,
		"--log-format=text",
		"--log-level=debug",
	}
	if o.Config != "" {
		config := filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(config, []byte(o.Config), 0o600); err != nil {
			return r, err
		}
		r.args = append(r.args, "--config="+config)
	}
	r.args = append(r.args, o.Args...)
	return r, nil
}

// Start runs the process, again after it has ended.
func (r *Replica) Start() (err error) {
	r.Process, err = controlplane.StartProcess(exec.Command(r.args[0], r.args[1:]...), r.log)
	return err
}

// DropAPI breaks all connections between the replica and the API server.
func (r *Replica) DropAPI() error { return r.api.drop() }

// Ready requests /readyz.
func (r *Replica) Ready(ctx context.Context) error {
	_, err := Get(ctx, "http://"+r.HealthAddress+"/readyz")
	return err
}

// Metrics reads /metrics.
func (r *Replica) Metrics(ctx context.Context) ([]byte, error) {
	return Get(ctx, "http://"+r.MetricsAddress+"/metrics")
}

// WaitReady waits until Ready, and fails if the process ends before.
func (r *Replica) WaitReady(ctx context.Context) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		select {
		case <-r.Done():
			return false, fmt.Errorf("it has ended: %w", r.Err())
		default:
		}
		last = r.Ready(ctx)
		return last == nil, nil
	})
	if err == nil {
		return nil
	}
	log, logErr := os.ReadFile(r.Log)
	return errors.Join(fmt.Errorf("waiting for solepod: %w: its log:\n%s", err, log), last, logErr)
}

func (r *Replica) stop() error {
	var err error
	if r.Process != nil {
		err = r.Stop()
	}
	if r.proxy != nil {
		err = errors.Join(err, r.proxy.close())
	}
	return errors.Join(err, r.api.close())
}

// link passes TCP connections on to an address, and can break them.
type link struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newLink(ctx context.Context, to string) (*link, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{Listener: listener, conns: map[net.Conn]bool{}}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return // it is closed
			}
			go l.pass(from, to)
		}
	}()
	return l, nil
}

func (l *link) pass(from net.Conn, address string) {
	to, err := new(net.Dialer).DialContext(context.Background(), "tcp", address)
	if err != nil {
		_ = from.Close() // to the client, there is no server
		return
	}
	l.mu.Lock()
	l.conns[from], l.conns[to] = true, true
	l.mu.Unlock()
	var halves sync.WaitGroup
	for _, half := range [][2]net.Conn{{from, to}, {to, from}} {
		halves.Go(func() {
			_, _ = io.Copy(half[0], half[1]) // ends by an error when the link is broken
			_ = half[0].Close()
		})
	}
	halves.Wait()
	l.mu.Lock()
	delete(l.conns, from)
	delete(l.conns, to)
	l.mu.Unlock()
}

func (l *link) drop() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for conn := range l.conns {
		// The peer receives a reset, not an end of the stream.
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (l *link) close() error { return errors.Join(l.Close(), l.drop()) }

// balancer serves at one address what several replicas serve, each request at
// the next of them. (A TCP proxy would not do: the API server keeps one HTTP/2
// connection, which would pin all reviews to one replica.)
type balancer struct {
	server *http.Server
	served []atomic.Int64 // by replica
}

func newBalancer(ctx context.Context, address, certDir string, ca []byte, replicas []*Replica) (*balancer, error) {
	b := &balancer{served: make([]atomic.Int64, len(replicas))}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	transport.MaxIdleConnsPerHost = 100
	var turn atomic.Int64
	b.server = &http.Server{
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0),
		Handler: &httputil.ReverseProxy{
			Transport: transport,
			ErrorLog:  log.New(io.Discard, "", 0), // the API server gets a 502
			Rewrite: func(r *httputil.ProxyRequest) {
				i := int(turn.Add(1)) % len(replicas)
				b.served[i].Add(1)
				r.SetURL(&url.URL{Scheme: "https", Host: replicas[i].Address})
			},
		},
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	go func() {
		_ = b.server.ServeTLS(listener, filepath.Join(certDir, "tls.crt"), filepath.Join(certDir, "tls.key")) // until it is closed
	}()
	return b, nil
}
