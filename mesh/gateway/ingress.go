package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"regexp"
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

// fragmentEffect is what a pass wants of the site: what an ingress says from now on, nil for nothing.
type fragmentEffect struct {
	rev      store.Revision
	fragment *fragment
}

// IngressLoop follows Ingresses of the classes of this controller: one table for all, at the node's addresses on ports 80 and
// 443, and a status for each. A pass concerns one ingress; what it says is put together with what the others say (site), at the cost of the
// hosts that it names.
func IngressLoop(c Config) reconcile.Loop {
	each := func(s store.Snapshot, ev store.Event) []reconcile.Key {
		if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(api.Object).GetGeneration() == ev.Entry.Object.(api.Object).GetGeneration() &&
			equality.Semantic.DeepEqual(ev.Prev.Object.(api.Object).GetAnnotations(), ev.Entry.Object.(api.Object).GetAnnotations()) {
			return nil // its status, which this loop wrote
		}
		return []reconcile.Key{{Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}}
	}
	all := newSite(&c)
	return reconcile.Loop{
		Name: "ingress-controller",
		Inputs: []reconcile.Input{
			{Resource: client.Ingresses.Name, Keys: each},
			{Resource: client.IngressClasses.Name, Keys: func(s store.Snapshot, _ store.Event) []reconcile.Key {
				var k []reconcile.Key
				for i := range client.Ingresses.List(s, "") {
					k = append(k, reconcile.Key{Namespace: i.Namespace, Name: i.Name})
				}
				return k
			}},
			{Resource: client.Services.Name, Keys: named("Service")},
			{Resource: client.Secrets.Name, Keys: named("Secret")},
		},
		Outputs: []reconcile.Output{{Resource: client.Ingresses.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			v := view{s, now}
			plan := c.ingressStatus(v, key)
			plan.Effect = &fragmentEffect{s.Revision(), v.fragment(key)}
			return plan, nil
		},
		Apply: func(_ context.Context, key reconcile.Key, e any) error {
			if c.Publisher == nil {
				return nil
			}
			f := e.(*fragmentEffect)
			return all.set(key, f.rev, f.fragment)
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
			plan := c.ingressStatus(view{s, now}, key) // what is served is, and the others' status says so too
			if i, ok := client.Ingresses.Get(s, key.Namespace, key.Name); ok {
				plan.Events = append(plan.Events, reconcile.Event{Regarding: aboutIngress(i), Type: corev1.EventTypeWarning, Reason: "ServeFailed", Message: err.Error()})
			}
			return plan
		},
	}
}

// named are the keys of the ingresses that name an object.
func named(kind string) func(store.Snapshot, store.Event) []reconcile.Key {
	return func(s store.Snapshot, ev store.Event) []reconcile.Key {
		var k keys
		for i := range client.Ingresses.Index(s, gatewayapi.ByReference, gatewayapi.Reference(kind, ev.Entry.Namespace, ev.Entry.Name)) {
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

// fragment is what one ingress says. It is immutable.
type fragment struct {
	ingress  *networkingv1.Ingress
	routes   map[string][]*table.Route // by host, "*" for any
	fallback *table.Rule               // what takes what no path takes
	names    map[string]*shown         // certificates by the names that they are for, "*" for clients that name none
	backends map[string]*backend
}

// shown is a certificate.
type shown struct {
	content [sha256.Size]byte
	tls     tls.Certificate
}

// fragment works out what an ingress says, nil if that is nothing to this controller.
func (v view) fragment(key reconcile.Key) *fragment {
	i, ok := client.Ingresses.Get(v, key.Namespace, key.Name)
	if !ok || !v.ourIngress(i) {
		return nil
	}
	f := &fragment{ingress: i, routes: map[string][]*table.Route{}, names: map[string]*shown{}, backends: map[string]*backend{}}
	c := &compiler{view: v, from: reference{"Ingress", i.Namespace}, backends: f.backends, bare: true}
	if b := i.Spec.DefaultBackend; b != nil {
		f.fallback = &table.Rule{Name: i.Namespace + "/" + i.Name, Backends: []table.Weighted{{Backend: c.ingressBackend(b), Weight: 1}}}
	}
	for r := range i.Spec.Rules {
		rule := &i.Spec.Rules[r]
		host := star(strings.ToLower(rule.Host))
		f.routes[host] = append(f.routes[host], nil...) // a host without paths has the default backend for itself
		if rule.HTTP == nil {
			continue
		}
		only := oneLabel(host)
		for p := range rule.HTTP.Paths {
			path := &rule.HTTP.Paths[p]
			m := table.PathMatch{Value: path.Path}
			if path.PathType != nil && *path.PathType == networkingv1.PathTypeExact {
				m.Kind = table.PathExact
			}
			f.routes[host] = append(f.routes[host], &table.Route{Match: table.Match{Path: m, Headers: only}, Rule: &table.Rule{
				Name:     fmt.Sprintf("%s/%s/%d/%d", i.Namespace, i.Name, r, p),
				Backends: []table.Weighted{{Backend: c.ingressBackend(&path.Backend), Weight: 1}},
			}})
		}
	}
	for t := range i.Spec.TLS {
		one := v.shown(i.Namespace, i.Spec.TLS[t].SecretName)
		if one == nil {
			continue
		}
		for _, name := range append([]string{"*"}, i.Spec.TLS[t].Hosts...) {
			if name = strings.ToLower(name); f.names[name] == nil {
				f.names[name] = one
			}
		}
	}
	return f
}

// oneLabel is the condition that goes with a wildcard: its star stands for one label and no more (IngressRule.host), while that of a
// virtual host stands for any number.
func oneLabel(host string) []table.ValueMatch {
	rest, wild := strings.CutPrefix(host, "*.")
	if !wild {
		return nil
	}
	return []table.ValueMatch{{Name: ":authority", Kind: table.ValueRegex, Value: `(?i)[^.:]+\.` + regexp.QuoteMeta(rest) + `\.?(:[0-9]*)?`}}
}

// shown reads the certificate of a secret, nil if there is none that can be used.
func (v view) shown(namespace, name string) *shown {
	secret, ok := client.Secrets.Get(v, namespace, name)
	if !ok {
		return nil
	}
	cert, err := certificate(secret)
	if err != nil {
		return nil
	}
	sum := sha256.New()
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		fmt.Fprintf(sum, "%d ", len(secret.Data[key]))
		sum.Write(secret.Data[key])
	}
	return &shown{tls: cert, content: [sha256.Size]byte(sum.Sum(nil))}
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

func aboutIngress(i *networkingv1.Ingress) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "Ingress", Namespace: i.Namespace, Name: i.Name, UID: i.UID}
}

// ingressStatus says where an ingress is reached, and warns of what cannot be done.
func (c *Config) ingressStatus(v view, key reconcile.Key) reconcile.Plan {
	old, ok := client.Ingresses.Get(v, key.Namespace, key.Name)
	if !ok || !v.ourIngress(old) {
		return reconcile.Plan{}
	}
	var plan reconcile.Plan
	about := aboutIngress(old)
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
