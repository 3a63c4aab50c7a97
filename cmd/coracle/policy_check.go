package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/network/policy"
)

func newPolicyCheck() *cobra.Command {
	p := &policyCommand{}
	var from, to, port, protocol string
	var v6 bool
	c := &cobra.Command{
		Use:   "check --from WHO --to WHOM [--port PORT]",
		Short: "Say whether traffic is allowed, and which rule of which policy decided",
		Long: `Say whether traffic is allowed, and which rule of which policy decided at either end. WHO and WHOM are
pod/NAME, NAMESPACE/NAME, pod/NAMESPACE/NAME, deployment/NAME (or statefulset, daemonset, replicaset, job), service/NAME,
namespace/NAME (a pod there without labels), node/NAME, or an address, ip/ADDRESS. The exit status is 0 if all of it is
allowed and 1 if some of it is denied.`,
		Example: "  coracle policy check --from deployment/web --to service/db --port 5432 -n shop",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			proto, err := parseProtocol(protocol)
			if err != nil {
				return err
			}
			s, err := p.load(cmd)
			if err != nil {
				return err
			}
			answer, err := s.check(from, to, port, proto, v6)
			if err != nil {
				return err
			}
			if p.output == "json" {
				err = encode(cmd.OutOrStdout(), answer)
			} else {
				err = answer.print(cmd.OutOrStdout())
			}
			if err == nil && !answer.Allowed {
				return exitCode(1)
			}
			return err
		},
	}
	p.add(c)
	c.Flags().StringVar(&from, "from", "", "who opens the connection")
	c.Flags().StringVar(&to, "to", "", "to whom")
	c.Flags().StringVar(&port, "port", "", "the port, by number or name; of a service, the service's own")
	c.Flags().StringVar(&protocol, "protocol", "TCP", "TCP, UDP, SCTP or ICMP")
	c.Flags().BoolVar(&v6, "ipv6", false, "ask about the IPv6 addresses of pods that have both families")
	for _, name := range []string{"from", "to"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err) // the flags stand above
		}
	}
	return c
}

// checked is the answer to a check: allowed if all flows are.
type checked struct {
	Allowed bool   `json:"allowed"`
	Flows   []flow `json:"flows"`
}

// flow is one pair, or several that are decided in the same way.
type flow struct {
	From     []string `json:"from"`
	To       []string `json:"to"`
	Protocol string   `json:"protocol"`
	Port     uint16   `json:"port,omitempty"`
	Allowed  bool     `json:"allowed"`
	// Egress and Ingress say what decided at the two ends.
	Egress  step `json:"egress"`
	Ingress step `json:"ingress"`
}

// step is a policy.Step for programs.
type step struct {
	Allowed bool   `json:"allowed"`
	Tier    string `json:"tier"`
	Policy  string `json:"policy,omitempty"`
	Rule    *int   `json:"rule,omitempty"` // counted from 0
	Why     string `json:"why"`
}

func newStep(s policy.Step) step {
	out := step{Allowed: s.Allowed, Tier: s.Tier.String(), Why: s.String()}
	if s.Reason == policy.ReasonRule {
		out.Policy, out.Rule = s.Policy.String(), &s.Rule
	}
	return out
}

// target is where a flow ends: a peer and, where it is known from a service, the port there.
type target struct {
	peer policy.Peer
	port uint16
}

func (s *situation) check(from, to, port string, proto corev1.Protocol, v6 bool) (*checked, error) {
	sources, err := s.peers(from)
	if err != nil {
		return nil, fmt.Errorf("--from %s: %w", from, err)
	}
	targets, err := s.targets(to, port, proto)
	if err != nil {
		return nil, fmt.Errorf("--to %s: %w", to, err)
	}
	out := &checked{Allowed: true}
	same := map[string]int{}
	for _, t := range targets {
		for _, source := range sources {
			v, err := s.model.Evaluate(policy.Flow{From: source, To: t.peer, Protocol: proto, Port: t.port, IPv6: v6})
			if err != nil {
				return nil, err
			}
			out.Allowed = out.Allowed && v.Allowed
			key := fmt.Sprint(v.Allowed, t.port, v.Egress, v.Ingress)
			at, ok := same[key]
			if !ok {
				at = len(out.Flows)
				same[key] = at
				out.Flows = append(out.Flows, flow{Protocol: string(proto), Port: t.port, Allowed: v.Allowed, Egress: newStep(v.Egress), Ingress: newStep(v.Ingress)})
			}
			f := &out.Flows[at]
			if name := source.String(); !slices.Contains(f.From, name) {
				f.From = append(f.From, name)
			}
			if name := t.peer.String(); !slices.Contains(f.To, name) {
				f.To = append(f.To, name)
			}
		}
	}
	return out, nil
}

func (c *checked) print(w io.Writer) error {
	for _, f := range c.Flows {
		word := "denied"
		if f.Allowed {
			word = "allowed"
		}
		what := f.Protocol
		if f.Port != 0 {
			what += " " + strconv.Itoa(int(f.Port))
		}
		if _, err := fmt.Fprintf(w, "%s: %s -> %s %s\n  %s\n  %s\n", word, few(f.From), few(f.To), what, f.Egress.Why, f.Ingress.Why); err != nil {
			return err
		}
	}
	return nil
}

// few shows the first names of a list.
func few(names []string) string {
	if len(names) > 4 {
		return strings.Join(names[:3], ", ") + fmt.Sprintf(" and %d more", len(names)-3)
	}
	return strings.Join(names, ", ")
}

// kinds are the words for what a peer can be, and their short forms.
var peerKinds = map[string]string{
	"pod": "pod", "pods": "pod", "po": "pod", "deployment": "deployment", "deployments": "deployment", "deploy": "deployment",
	"statefulset": "statefulset", "statefulsets": "statefulset", "sts": "statefulset", "daemonset": "daemonset", "daemonsets": "daemonset", "ds": "daemonset",
	"replicaset": "replicaset", "replicasets": "replicaset", "rs": "replicaset", "job": "job", "jobs": "job",
	"service": "service", "services": "service", "svc": "service", "namespace": "namespace", "namespaces": "namespace", "ns": "namespace",
	"node": "node", "nodes": "node", "no": "node", "ip": "ip",
}

// named takes what the command line says of a peer apart.
func (s *situation) named(text string) (kind, namespace, name string, err error) {
	if text == "" {
		return "", "", "", fmt.Errorf("nobody is named")
	}
	parts := strings.Split(text, "/")
	known := peerKinds[strings.ToLower(parts[0])]
	switch {
	case len(parts) == 1:
		if _, err := netip.ParseAddr(text); err == nil {
			return "ip", "", text, nil
		}
		return "pod", s.namespace, text, nil
	case known == "ip":
		return known, "", strings.Join(parts[1:], "/"), nil
	case known != "" && len(parts) == 2:
		return known, s.namespace, parts[1], nil
	case known != "" && len(parts) == 3:
		return known, parts[1], parts[2], nil
	case known == "" && len(parts) == 2:
		return "pod", parts[0], parts[1], nil
	}
	return "", "", "", fmt.Errorf("write pod/NAME, NAMESPACE/NAME, deployment/NAME, service/NAME, namespace/NAME, node/NAME or ip/ADDRESS")
}

// peers are those that a name stands for.
func (s *situation) peers(text string) ([]policy.Peer, error) {
	kind, namespace, name, err := s.named(text)
	if err != nil {
		return nil, err
	}
	var selector *metav1.LabelSelector
	switch kind {
	case "ip":
		addr, err := netip.ParseAddr(name)
		if err != nil {
			return nil, fmt.Errorf("%q is not an address", name)
		}
		return []policy.Peer{{Addr: addr}}, nil
	case "node":
		return []policy.Peer{{Node: name}}, nil
	case "namespace":
		return []policy.Peer{{Namespace: name}}, nil
	case "pod":
		pod, ok := client.Pods.Get(s.snapshot, namespace, name)
		if !ok && namespace == policy.StandInNamespace && (name == policy.GatewayStandIn || name == policy.DNSStandIn) {
			return []policy.Peer{{Namespace: namespace, Pod: name}}, nil
		}
		if !ok {
			return nil, fmt.Errorf("there is no pod %s in namespace %s", name, namespace)
		}
		return []policy.Peer{podPeer(pod)}, nil
	case "service":
		svc, ok := client.Services.Get(s.snapshot, namespace, name)
		if !ok {
			return nil, fmt.Errorf("there is no service %s in namespace %s", name, namespace)
		}
		selector = &metav1.LabelSelector{MatchLabels: svc.Spec.Selector}
		if len(svc.Spec.Selector) == 0 {
			return nil, fmt.Errorf("the service has no selector, and so no pods of its own")
		}
	default:
		var ok bool
		if selector, ok = s.selector(kind, namespace, name); !ok {
			return nil, fmt.Errorf("there is no %s %s in namespace %s", kind, name, namespace)
		}
	}
	match, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, err
	}
	var out []policy.Peer
	for pod := range client.Pods.List(s.snapshot, namespace) {
		if match.Matches(labels.Set(pod.Labels)) && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			out = append(out, podPeer(pod))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("it has no pods")
	}
	return out, nil
}

// podPeer is the pod or, for one in the node's network, its node.
func podPeer(pod *corev1.Pod) policy.Peer {
	if pod.Spec.HostNetwork {
		return policy.Peer{Node: pod.Spec.NodeName}
	}
	return policy.Peer{Namespace: pod.Namespace, Pod: pod.Name}
}

func (s *situation) selector(kind, namespace, name string) (*metav1.LabelSelector, bool) {
	switch kind {
	case "deployment":
		if o, ok := client.Deployments.Get(s.snapshot, namespace, name); ok {
			return o.Spec.Selector, true
		}
	case "replicaset":
		if o, ok := client.ReplicaSets.Get(s.snapshot, namespace, name); ok {
			return o.Spec.Selector, true
		}
	case "statefulset":
		if o, ok := client.StatefulSets.Get(s.snapshot, namespace, name); ok {
			return o.Spec.Selector, true
		}
	case "daemonset":
		if o, ok := client.DaemonSets.Get(s.snapshot, namespace, name); ok {
			return o.Spec.Selector, true
		}
	case "job":
		if o, ok := client.Jobs.Get(s.snapshot, namespace, name); ok {
			return o.Spec.Selector, true
		}
	}
	return nil, false
}

// targets are the ends of flows: for a service its ready endpoints, with the port that its own leads to.
func (s *situation) targets(text, port string, proto corev1.Protocol) ([]target, error) {
	kind, namespace, name, err := s.named(text)
	if err != nil {
		return nil, err
	}
	if kind == "service" && proto != policy.ICMP {
		return s.endpoints(namespace, name, port, proto)
	}
	peers, err := s.peers(text)
	if err != nil {
		return nil, err
	}
	var out []target
	for _, peer := range peers {
		t := target{peer: peer}
		if proto != policy.ICMP {
			if t.port, err = s.port(peer, port, proto); err != nil {
				return nil, err
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// port is a number, or the port of a pod that has the name.
func (s *situation) port(peer policy.Peer, text string, proto corev1.Protocol) (uint16, error) {
	if text == "" {
		return 0, fmt.Errorf("say which port: --port")
	}
	parsed := intstr.Parse(text)
	if parsed.Type == intstr.Int {
		if parsed.IntVal < 1 || parsed.IntVal > 65535 {
			return 0, fmt.Errorf("port %s is not from 1 to 65535", text)
		}
		return uint16(parsed.IntVal), nil
	}
	if pod, ok := client.Pods.Get(s.snapshot, peer.Namespace, peer.Pod); ok {
		for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range containers {
				for _, p := range containers[i].Ports {
					if p.Name == text && (p.Protocol == proto || p.Protocol == "" && proto == corev1.ProtocolTCP) {
						return uint16(p.ContainerPort), nil
					}
				}
			}
		}
	}
	return 0, fmt.Errorf("%s has no %s port named %q", peer, proto, text)
}

func (s *situation) endpoints(namespace, name, port string, proto corev1.Protocol) ([]target, error) {
	svc, ok := client.Services.Get(s.snapshot, namespace, name)
	if !ok {
		return nil, fmt.Errorf("there is no service %s in namespace %s", name, namespace)
	}
	at := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
		return (p.Protocol == proto || p.Protocol == "" && proto == corev1.ProtocolTCP) && (port == "" || port == p.Name || port == strconv.Itoa(int(p.Port)))
	})
	if at < 0 || port == "" && len(svc.Spec.Ports) > 1 {
		var have []string
		for _, p := range svc.Spec.Ports {
			have = append(have, fmt.Sprintf("%s/%d", p.Protocol, p.Port))
		}
		return nil, fmt.Errorf("say which port: the service has %s", strings.Join(have, ", "))
	}
	var out []target
	for slice := range client.EndpointSlices.Index(s.snapshot, "service", namespace+"/"+name) {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != svc.Spec.Ports[at].Name || p.Protocol != nil && *p.Protocol != proto {
				continue
			}
			for i := range slice.Endpoints {
				if t, ok := endpointTarget(&slice.Endpoints[i], namespace, uint16(*p.Port)); ok && !slices.ContainsFunc(out, func(o target) bool { return o.peer.String() == t.peer.String() }) {
					out = append(out, t)
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the service has no ready endpoints")
	}
	return out, nil
}

func endpointTarget(e *discoveryv1.Endpoint, namespace string, port uint16) (target, bool) {
	if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
		return target{}, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return target{}, false
	}
	if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
		return target{policy.Peer{Namespace: namespace, Pod: e.TargetRef.Name}, port}, true
	}
	return target{policy.Peer{Addr: addr}, port}, true
}
