package gateway

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// site is what all ingresses say together: they share their hosts, their addresses and ports. What one of them says is put in at the cost of
// the hosts that it names; only rules without a host and default backends, which are for every host, cost all of them. Safe for concurrent use.
type site struct {
	config *Config

	mu        sync.Mutex // guards what follows
	fragments map[reconcile.Key]*fragment
	// hosts, names and fallbacks have the fragments that say something of a host, of the certificate for a name ("*" for clients that
	// name none), and of what no path takes; older ones first, who came first goes first.
	hosts, names claims
	fallbacks    claims
	served       *table.Hosts
	certificates table.Map[*shown]
	end          *table.TLS // nil if there is no certificate
	// failing is the pass that tries again to open what could not be opened; the others need not.
	failing reconcile.Key
}

// claims are the fragments that say something of a name, those of older ingresses first.
type claims map[string][]*fragment

func newSite(c *Config) *site {
	s := &site{config: c, fragments: map[reconcile.Key]*fragment{}, hosts: claims{}, names: claims{}, fallbacks: claims{}, served: &table.Hosts{}}
	_ = s.rebuild(map[string]bool{"*": true}) // there is nothing in it that could be wrong
	return s
}

func (c claims) add(name string, f *fragment) {
	at, _ := slices.BinarySearchFunc(c[name], f, func(a, b *fragment) int { return older(a.ingress, b.ingress) })
	c[name] = slices.Insert(c[name], at, f)
}

func (c claims) drop(name string, f *fragment) {
	if c[name] = slices.DeleteFunc(c[name], func(o *fragment) bool { return o == f }); len(c[name]) == 0 {
		delete(c, name)
	}
}

// owner of what the site adds to the table beside the backends of each ingress.
const siteOwner = "ingress"

// set gives an ingress what it says from now on, nil for nothing, and publishes what comes of it.
func (s *site) set(key reconcile.Key, rev store.Revision, f *fragment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.fragments[key]
	if old == nil && f == nil && s.failing != key {
		return nil
	}
	secured, err := s.replace(key, old, f)
	if err != nil {
		return err
	}
	if secured {
		if err := s.secure(); err != nil {
			return err
		}
	}
	listeners, err := s.listeners()
	if err != nil {
		return err
	}
	mine := owned{owner: siteOwner + "/" + key.Namespace + "/" + key.Name}
	if f != nil {
		mine.part = &part{backends: f.backends}
	}
	all := owned{owner: siteOwner}
	if len(listeners) > 0 {
		all.part = &part{listeners: listeners}
	}
	err = s.config.Publisher.set(rev, mine, all)
	none := reconcile.Key{}
	switch {
	case err == nil:
		s.failing = none
	case s.failing == none || s.failing == key:
		s.failing = key
	default:
		return nil
	}
	return err
}

// replace puts in what an ingress says in place of what it said. secured tells that the certificates are not what they were.
func (s *site) replace(key reconcile.Key, old, f *fragment) (secured bool, err error) {
	touched, named := map[string]bool{}, map[string]bool{}
	s.each(old, claims.drop, touched, named)
	s.each(f, claims.add, touched, named)
	if delete(s.fragments, key); f != nil {
		s.fragments[key] = f
	}
	if touched["*"] {
		for host := range s.hosts {
			touched[host] = true
		}
	}
	if err := s.rebuild(touched); err != nil {
		return false, err
	}
	return s.choose(named), nil
}

// each does something with all that a fragment says, and notes of what.
func (s *site) each(f *fragment, do func(claims, string, *fragment), touched, named map[string]bool) {
	if f == nil {
		return
	}
	for host := range f.routes {
		do(s.hosts, host, f)
		touched[host] = true
	}
	for name := range f.names {
		do(s.names, name, f)
		named[name] = true
	}
	if f.fallback != nil {
		do(s.fallbacks, "", f)
		touched["*"] = true
	}
}

// rebuild makes the virtual hosts of these names anew.
func (s *site) rebuild(touched map[string]bool) error {
	put, remove := map[string]*table.VirtualHost{}, []string(nil)
	for host := range touched {
		if host != "*" && s.hosts[host] == nil {
			remove = append(remove, host)
			continue
		}
		routes := s.routes(host)
		if host != "*" { // rules without a host are for every host
			routes = append(routes, s.routes("*")...)
		}
		if first := s.fallbacks[""]; first != nil {
			routes = append(routes, &table.Route{Rule: first[0].fallback})
		}
		h, err := table.NewVirtualHost("ingress "+host, []string{host}, routes)
		if err != nil {
			return err
		}
		put[host] = h
	}
	s.served = s.served.With(put, remove)
	return nil
}

// routes are those of a host, in the order in which they are tried.
func (s *site) routes(host string) []*table.Route {
	var out []*table.Route
	for _, f := range s.hosts[host] {
		out = append(out, f.routes[host]...)
	}
	table.Precedence(out)
	return out
}

// choose takes the certificates of these names from the oldest ingress that has one. It tells whether one is another than before.
func (s *site) choose(named map[string]bool) (changed bool) {
	put, remove := map[string]*shown{}, []string(nil)
	for name := range named {
		was, had := s.certificates.Get(name)
		claim := s.names[name]
		switch {
		case claim == nil && had:
			remove = append(remove, name)
		case claim != nil && (!had || was.content != claim[0].names[name].content):
			put[name] = claim[0].names[name]
		}
	}
	s.certificates = s.certificates.With(put, remove)
	return len(put)+len(remove) > 0
}

// secure makes the termination of TLS anew. What was negotiated by the old one goes on.
func (s *site) secure() error {
	all := s.certificates
	first, ok := all.Get("*")
	if !ok {
		s.end = nil
		return nil
	}
	end, err := table.MakeTLS([]tls.Certificate{first.tls}, nil, table.NoClientCertificate, func(c *tls.Config) {
		c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name := strings.ToLower(hello.ServerName)
			if cert, ok := all.Get(name); ok {
				return &cert.tls, nil
			}
			if _, rest, ok := strings.Cut(name, "."); ok {
				if cert, ok := all.Get("*." + rest); ok {
					return &cert.tls, nil
				}
			}
			return nil, nil // the first
		}
	})
	s.end = end
	return err
}

// listeners are those of all ingresses, none if there is no ingress.
func (s *site) listeners() ([]*table.Listener, error) {
	if len(s.fragments) == 0 || len(s.config.Nodes) == 0 {
		return nil, nil
	}
	ports := map[uint16][]*table.Chain{80: {{Name: siteOwner, Hosts: s.served}}}
	if s.end != nil {
		ports[443] = []*table.Chain{{Name: siteOwner, TLS: s.end, Hosts: s.served}}
	}
	var out []*table.Listener
	for _, addr := range slices.Concat(s.config.Nodes, s.config.Loopback) {
		for port, chains := range ports {
			at := netip.AddrPortFrom(addr, port)
			l, err := table.NewListener(table.Listener{ID: fmt.Sprintf("%s/%s", siteOwner, at), Address: at, Chains: chains})
			if err != nil {
				return nil, err
			}
			out = append(out, l)
		}
	}
	return out, nil
}
