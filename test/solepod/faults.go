package solepod

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/rest"
)

// Fault is what becomes of a replica's request to the API server. The zero
// value is that it is served.
type Fault struct {
	// Delay is how long it takes until the rest happens.
	Delay time.Duration
	// Silent holds back the response, and the events of watches, until the faults
	// change.
	Silent bool
	// Status is what is answered in place of the API server, with RetryAfter
	// seconds, unless that is 0.
	Status, RetryAfter int
	// Reset breaks all connections of the replica before the API server receives the
	// request, Lost after the API server has served it.
	Reset, Lost bool
}

// Break injects faults into the requests of a replica to the API server, by verb and
// resource; nil ends that. Options.Faults must be set.
// Watches that are open are concerned by Silent alone; DropAPI ends them.
func (r *Replica) Break(faults func(verb, resource string) Fault) { r.proxy.set(faults) }

// proxy is the API server of a replica, with injected faults.
type proxy struct {
	net.Listener
	server   *http.Server
	next     *httputil.ReverseProxy
	requests request.RequestInfoFactory
	drop     func() error

	mu      sync.Mutex
	faults  func(verb, resource string) Fault
	changed chan struct{} // is closed when faults are others
}

// newProxy passes requests on to the API server that config names, with their
// own credentials, and serves a certificate from certDir. drop is how it breaks
// connections.
func newProxy(ctx context.Context, config *rest.Config, certDir string, drop func() error) (*proxy, error) {
	server, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(config))
	if err != nil {
		return nil, err
	}
	p := &proxy{
		requests: request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")},
		drop:     drop,
		changed:  make(chan struct{}),
	}
	p.next = &httputil.ReverseProxy{
		Transport:      transport,
		FlushInterval:  -1, // events of watches are not kept
		ErrorLog:       log.New(io.Discard, "", 0),
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(server) },
		ModifyResponse: p.answer,
	}
	p.server = &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: p.next.ErrorLog, Handler: p}
	if p.Listener, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	go func() {
		_ = p.server.ServeTLS(p.Listener, filepath.Join(certDir, "tls.crt"), filepath.Join(certDir, "tls.key")) // until it is closed
	}()
	return p, nil
}

func (p *proxy) set(faults func(verb, resource string) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = faults
	close(p.changed)
	p.changed = make(chan struct{})
}

// fault delays a request and returns its fault.
func (p *proxy) fault(r *http.Request) (Fault, error) {
	for {
		fault, changed := Fault{}, (chan struct{})(nil)
		info, err := p.requests.NewRequestInfo(r)
		if err != nil {
			return fault, err
		}
		p.mu.Lock()
		if p.faults != nil {
			fault = p.faults(info.Verb, info.Resource)
		}
		changed = p.changed
		p.mu.Unlock()
		if !fault.Silent {
			return fault, nil
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return fault, r.Context().Err()
		}
	}
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault, err := p.fault(r)
	if err != nil {
		return // the client is gone
	}
	select {
	case <-time.After(fault.Delay):
	case <-r.Context().Done():
		return
	}
	switch {
	case fault.Reset:
		_ = p.drop() // the replica must bear whatever comes
	case fault.Status != 0:
		if fault.RetryAfter != 0 {
			w.Header().Set("Retry-After", strconv.Itoa(fault.RetryAfter))
		}
		http.Error(w, "a fault", fault.Status)
	default:
		p.next.ServeHTTP(w, r)
	}
}

// answer receives the API server's response before the replica does.
func (p *proxy) answer(resp *http.Response) error {
	fault, err := p.fault(resp.Request)
	if err != nil {
		return err
	}
	if fault.Lost {
		return errors.Join(errors.New("the answer is lost"), p.drop())
	}
	resp.Body = &silenceable{resp.Body, resp.Request, p}
	return nil
}

// silenceable is the body of a response that stops while the fault is Silent.
type silenceable struct {
	io.ReadCloser
	request *http.Request
	proxy   *proxy
}

func (t *silenceable) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if _, gone := t.proxy.fault(t.request); gone != nil {
		return 0, gone
	}
	return n, err
}

func (p *proxy) close() error { return p.server.Close() }
