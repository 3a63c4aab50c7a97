package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/api"
	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// classAnnotation named the class of an ingress before spec.ingressClassName did.
const classAnnotation = "kubernetes.io/ingress.class"

// ingresses is the key of the pass that makes the table of all ingresses: they share their hosts and ports.
var ingresses = reconcile.Key{Resource: "ingresses"}

// IngressLoop follows Ingresses of the classes of this controller: one table for all, at the node's addresses on ports 80 and
// 443, and a status for each.
func IngressLoop(c Config) reconcile.Loop {
	each := func(s store.Snapshot, ev store.Event) []reconcile.Key {
		if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(api.Object).GetGeneration() == ev.Entry.Object.(api.Object).GetGeneration() &&
			equality.Semantic.DeepEqual(ev.Prev.Object.(api.Object).GetAnnotations(), ev.Entry.Object.(api.Object).GetAnnotations()) {
			return nil // its status, which this loop wrote
		}
		return []reconcile.Key{ingresses, {Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}}
	}
	return reconcile.Loop{
		Name: "ingress-controller",
		Inputs: []reconcile.Input{
			{Resource: client.Ingresses.Name, Keys: each},
			{Resource: client.IngressClasses.Name, Keys: func(s store.Snapshot, _ store.Event) []reconcile.Key {
				k := keys{ingresses}
				for i := range client.Ingresses.List(s, "") {
					k.add("", i.Namespace, i.Name)
				}
				return k
			}},
			{Resource: client.Services.Name, Keys: named("Service")},
			{Resource: client.Secrets.Name, Keys: named("Secret")},
		},
		Outputs: []reconcile.Output{{Resource: client.Ingresses.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			v := view{s, now}
			if key == ingresses {
				p, err := c.ingressTables(v)
				return reconcile.Plan{Effect: &effect{rev: s.Revision(), owner: "ingress", part: p}}, err
			}
			return c.ingressStatus(v, key), nil
		},
		Apply: func(_ context.Context, _ reconcile.Key, e any) error {
			if c.Publisher == nil {
				return nil
			}
			f := e.(*effect)
			return c.Publisher.set(f.owner, f.rev, f.part)
		},
	}
}

// named are the keys of the ingresses that name an object.
func named(kind string) func(store.Snapshot, store.Event) []reconcile.Key {
	return func(s store.Snapshot, ev store.Event) []reconcile.Key {
		var k keys
		for i := range client.Ingresses.Index(s, gatewayapi.ByReference, gatewayapi.Reference(kind, ev.Entry.Namespace, ev.Entry.Name)) {
			if len(k) == 0 {
				k = append(k, ingresses)
			}
			k.add("", i.Namespace, i.Name)
		}
		return k
	}
}

// ourIngress tells whether an ingress is of a class of this controller.
func (v view) ourIngress(i *networkingv1.Ingress) bool {
	name := i.Annotations[classAnnotation]
	if i.Spec.IngressClassName != nil {
		name = *i.Spec.IngressClassName
	}
	c, ok := client.IngressClasses.Get(v, "", name)
	return ok && c.Spec.Controller == IngressController && i.DeletionTimestamp == nil
}

// site collects what the ingresses say of all hosts.
type site struct {
	routes   map[string][]*table.Route // by host, "*" for any
	fallback *table.Rule               // the oldest default backend
	chains   []*table.Chain
	secured  map[string]bool // names that have a certificate
}

// ingressTables makes the part of the table of all ingresses, nil if there is none.
func (c *Config) ingressTables(v view) (*part, error) {
	var all []*networkingv1.Ingress
	for i := range client.Ingresses.List(v, "") {
		if v.ourIngress(i) {
			all = append(all, i)
		}
	}
	if len(all) == 0 || len(c.Nodes) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(all, func(a, b *networkingv1.Ingress) int { return older(a, b) })
	out := &part{backends: map[string]*backend{}}
	s := &site{routes: map[string][]*table.Route{"*": nil}, secured: map[string]bool{}}
	for _, i := range all {
		v.ingress(s, i, out.backends)
	}
	hosts, err := s.hosts()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if err := v.ingressTLS(s, i, hosts); err != nil {
			return nil, err
		}
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, addr := range append(slices.Clone(c.Nodes), loopback) {
		for port, chains := range map[uint16][]*table.Chain{80: {{Name: "ingress", Hosts: hosts}}, 443: s.chains} {
			if len(chains) == 0 {
				continue
			}
			at := netip.AddrPortFrom(addr, port)
			l, err := table.NewListener(table.Listener{ID: "ingress/" + at.String(), Address: at, Chains: chains})
			if err != nil {
				return nil, err
			}
			out.listeners = append(out.listeners, l)
		}
	}
	return out, nil
}

// ingress adds what one ingress says to the site.
func (v view) ingress(s *site, i *networkingv1.Ingress, backends map[string]*backend) {
	c := &compiler{view: v, from: reference{"Ingress", i.Namespace}, backends: backends, bare: true}
	if b := i.Spec.DefaultBackend; b != nil && s.fallback == nil {
		s.fallback = &table.Rule{Name: i.Namespace + "/" + i.Name, Backends: []table.Weighted{{Backend: c.ingressBackend(b), Weight: 1}}}
	}
	for r := range i.Spec.Rules {
		rule := &i.Spec.Rules[r]
		host := star(strings.ToLower(rule.Host))
		if rule.HTTP == nil {
			s.routes[host] = append(s.routes[host], nil...)
			continue
		}
		for p := range rule.HTTP.Paths {
			path := &rule.HTTP.Paths[p]
			m := table.PathMatch{Value: path.Path}
			if path.PathType != nil && *path.PathType == networkingv1.PathTypeExact {
				m.Kind = table.PathExact
			}
			s.routes[host] = append(s.routes[host], &table.Route{Match: table.Match{Path: m}, Rule: &table.Rule{
				Name:     fmt.Sprintf("%s/%s/%d/%d", i.Namespace, i.Name, r, p),
				Backends: []table.Weighted{{Backend: c.ingressBackend(&path.Backend), Weight: 1}},
			}})
		}
	}
}

// ingressBackend is the id of a backend of an ingress, "" if there is none of that name.
func (c *compiler) ingressBackend(b *networkingv1.IngressBackend) string {
	if b.Service == nil {
		return ""
	}
	svc, ok := client.Services.Get(c, c.from.namespace, b.Service.Name)
	if !ok || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return ""
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP &&
			(b.Service.Port.Name != "" && p.Name == b.Service.Port.Name || b.Service.Port.Name == "" && p.Port == b.Service.Port.Number) {
			return c.use(svc, p, table.HTTP1)
		}
	}
	return ""
}

// hosts are the virtual hosts of the site. What no path of a host takes goes to the default backend.
func (s *site) hosts() (*table.Hosts, error) {
	put := map[string]*table.VirtualHost{}
	for host, routes := range s.routes {
		table.Precedence(routes)
		if host != "*" { // rules without a host are for every host
			any := slices.Clone(s.routes["*"])
			table.Precedence(any)
			routes = append(routes, any...)
		}
		if s.fallback != nil {
			routes = append(routes, &table.Route{Rule: s.fallback})
		}
		h, err := table.NewVirtualHost("ingress "+host, []string{host}, routes)
		if err != nil {
			return nil, err
		}
		put[host] = h
	}
	return (&table.Hosts{}).With(put, nil), nil
}

// ingressTLS adds the certificates of an ingress: for each of its hosts, and for clients that name none if it is the first.
func (v view) ingressTLS(s *site, i *networkingv1.Ingress, hosts *table.Hosts) error {
	for t := range i.Spec.TLS {
		secret, ok := client.Secrets.Get(v, i.Namespace, i.Spec.TLS[t].SecretName)
		if !ok {
			continue
		}
		cert, err := certificate(secret)
		if err != nil {
			continue
		}
		names := append([]string{"*"}, i.Spec.TLS[t].Hosts...)
		var mine []string
		for _, n := range names {
			if n = strings.ToLower(n); !s.secured[n] {
				s.secured[n] = true
				mine = append(mine, n)
			}
		}
		if len(mine) == 0 {
			continue
		}
		end, err := table.MakeTLS([]tls.Certificate{cert}, nil, table.NoClientCertificate, nil)
		if err != nil {
			return err
		}
		s.chains = append(s.chains, &table.Chain{Name: "ingress " + i.Namespace + "/" + i.Name, ServerNames: mine, TLS: end, Hosts: hosts})
	}
	return nil
}

// ingressStatus says where an ingress is reached, and warns of what cannot be done.
func (c *Config) ingressStatus(v view, key reconcile.Key) reconcile.Plan {
	old, ok := client.Ingresses.Get(v, key.Namespace, key.Name)
	if !ok || !v.ourIngress(old) {
		return reconcile.Plan{}
	}
	var plan reconcile.Plan
	about := corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "Ingress", Namespace: old.Namespace, Name: old.Name, UID: old.UID}
	for _, w := range v.ingressProblems(old) {
		plan.Events = append(plan.Events, reconcile.Event{Regarding: about, Type: corev1.EventTypeWarning, Reason: w[0], Message: w[1]})
	}
	i := old.DeepCopy()
	i.Status.LoadBalancer.Ingress = nil
	for _, a := range c.Nodes {
		i.Status.LoadBalancer.Ingress = append(i.Status.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: a.String()})
	}
	if !equality.Semantic.DeepEqual(i.Status, old.Status) {
		plan.Writes = []reconcile.Write{status(client.Ingresses.Name, i)}
	}
	return plan
}

// ingressProblems are reasons and messages of events.
func (v view) ingressProblems(i *networkingv1.Ingress) [][2]string {
	var out [][2]string
	check := func(b *networkingv1.IngressBackend) {
		switch {
		case b == nil:
		case b.Resource != nil:
			out = append(out, [2]string{"UnsupportedBackend", fmt.Sprintf("resource backends are not supported: %s %q is answered with an error", b.Resource.Kind, b.Resource.Name)})
		case (&compiler{view: v, from: reference{"Ingress", i.Namespace}, bare: true}).ingressBackend(b) == "":
			port := b.Service.Port.Name
			if port == "" {
				port = fmt.Sprint(b.Service.Port.Number)
			}
			out = append(out, [2]string{"BackendNotFound", fmt.Sprintf("service %q with port %s not found", b.Service.Name, port)})
		}
	}
	check(i.Spec.DefaultBackend)
	for r := range i.Spec.Rules {
		if i.Spec.Rules[r].HTTP == nil {
			continue
		}
		for p := range i.Spec.Rules[r].HTTP.Paths {
			check(&i.Spec.Rules[r].HTTP.Paths[p].Backend)
		}
	}
	for t := range i.Spec.TLS {
		name := i.Spec.TLS[t].SecretName
		secret, ok := client.Secrets.Get(v, i.Namespace, name)
		if !ok {
			out = append(out, [2]string{"SecretNotFound", fmt.Sprintf("secret %q not found", name)})
		} else if _, err := certificate(secret); err != nil {
			out = append(out, [2]string{"InvalidSecret", fmt.Sprintf("secret %q holds no usable certificate: %v", name, err)})
		}
	}
	return out
}
