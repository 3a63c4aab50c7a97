package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"coracle.dev/coracle/mesh/table"
)

// Config is what a Proxy is made with.
type Config struct {
	// Log gets what an operator should know: listeners that come and go or fail. Nil is silence.
	Log *slog.Logger
	// Access, if set, is called after every request, in the goroutine of its connection: it must be quick. See LogAccess.
	Access func(*Access)
	// Source, if set, gives the address from which endpoints are connected to; not valid for what the kernel chooses.
	Source func(endpoint netip.Addr) netip.Addr
}

// Proxy is a data plane. Its methods may be called from any goroutine.
type Proxy struct {
	log     *slog.Logger
	access  func(*Access)
	source  func(netip.Addr) netip.Addr
	ctx     context.Context
	cancel  context.CancelFunc
	current atomic.Pointer[view]

	mu        sync.Mutex // guards what follows; held for the length of an Apply
	listeners map[string]*listener
	closed    bool

	work    sync.WaitGroup
	mirrors atomic.Int32

	requests, refused, bytes, overflow, datagramsDropped atomic.Uint64
	connections                                          atomic.Int64
	stats                                                stats
}

// view is what a request is served by: a table and the clusters of its backends. It is immutable.
type view struct {
	table    *table.Table
	clusters table.Map[*cluster]
}

var quiet = log.New(io.Discard, "", 0)

// New returns a proxy that serves nothing yet.
func New(config Config) *Proxy {
	p := &Proxy{log: config.Log, access: config.Access, source: config.Source, listeners: map[string]*listener{}}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	empty, _ := table.New(0, nil, nil)
	p.current.Store(&view{table: empty})
	return p
}

// ListenError is a listener that could not be opened. The others of its table are served; the next Apply tries it again.
type ListenError struct {
	// ID of the listener.
	ID string
	// Err is why, as the kernel said it.
	Err error
}

func (e *ListenError) Error() string { return fmt.Sprintf("listener %s: %v", e.ID, e.Err) }

// Unwrap returns Err.
func (e *ListenError) Unwrap() error { return e.Err }

// ErrClosed is returned by Apply after Close.
var ErrClosed = errors.New("the proxy is closed")

// Apply serves t from now on. When it returns, requests that begin are served by t, sockets of new listeners accept, and endpoints that are
// gone get nothing new. The cost is that of the difference to the table before. The error joins *ListenErrors.
func (p *Proxy) Apply(t *table.Table) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	old := p.current.Load()
	put, remove := map[string]*cluster{}, []string(nil)
	var retired []*endpoint
	for id, change := range t.Backends().Changed(old.table.Backends()) {
		switch cl, had := old.clusters.Get(id); {
		case !change.Has:
			remove = append(remove, id)
			if had {
				for _, e := range cl.state.Load().all {
					e.gone.Store(true)
					retired = append(retired, e)
				}
			}
		case had:
			retired = append(retired, cl.update(change.New)...)
		default:
			put[id] = newCluster(change.New, p.source)
		}
	}
	p.current.Store(&view{table: t, clusters: old.clusters.With(put, remove)})
	for _, e := range retired {
		e.retire()
	}
	return p.applyListeners(t, old.table)
}

// applyListeners closes sockets that are gone and opens new ones.
func (p *Proxy) applyListeners(t, old *table.Table) error {
	var errs []error
	for id, change := range t.Listeners().Changed(old.Listeners()) {
		l := p.listeners[id]
		if l == nil {
			continue
		}
		if !change.Has || !l.fits(change.New) {
			delete(p.listeners, id)
			l.remove()
			continue
		}
		l.take(change.New)
	}
	for id, spec := range t.Listeners().All() {
		if p.listeners[id] != nil {
			continue
		}
		l, err := p.open(spec)
		if err != nil {
			errs = append(errs, &ListenError{id, err})
			continue
		}
		p.listeners[id] = l
	}
	return errors.Join(errs...)
}

// Table is the table that is served.
func (p *Proxy) Table() *table.Table { return p.current.Load().table }

// Address returns the address that the listener with an id accepts at, and whether it does.
func (p *Proxy) Address(id string) (netip.AddrPort, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.listeners[id]; l != nil {
		return l.address, true
	}
	return netip.AddrPort{}, false
}

// Close stops accepting, lets requests under way go on until ctx ends, then closes everything and waits for all goroutines.
func (p *Proxy) Close(ctx context.Context) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	all := p.listeners
	p.listeners = map[string]*listener{}
	p.mu.Unlock()
	for _, l := range all {
		l.remove()
	}
	ended := make(chan struct{})
	go func() {
		p.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	p.cancel()
	<-ended
	for _, cl := range p.current.Load().clusters.All() {
		for _, e := range cl.state.Load().all {
			e.gone.Store(true)
			e.retire()
		}
	}
}

const maxMirrors = 256

func (p *Proxy) startMirror() bool {
	if p.mirrors.Add(1) > maxMirrors {
		p.mirrors.Add(-1)
		return false
	}
	p.work.Add(1)
	return true
}

func (p *Proxy) endMirror() {
	p.mirrors.Add(-1)
	p.work.Done()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
