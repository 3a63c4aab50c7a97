package policy

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// scenario is a set of policies, as text, and who reaches whom with them, said in plain words and not by the decision function.
type scenario struct {
	name     string
	policies string
	want     func(from, to string, proto uint8, port uint16) bool
}

func selected(name string, names ...string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

// apply reads documents of both kinds.
func (l *lab) apply(t *testing.T, text string) {
	t.Helper()
	for _, doc := range strings.Split(text, "\n---\n") {
		if strings.Contains(doc, "tier:") {
			cnp := &policyv1alpha2.ClusterNetworkPolicy{}
			if err := yaml.UnmarshalStrict([]byte(doc), cnp); err != nil {
				t.Fatalf("%v in %s", err, doc)
			}
			l.clusterPolicy(cnp)
			continue
		}
		np := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(doc), np); err != nil {
			t.Fatalf("%v in %s", err, doc)
		}
		l.policy(np)
	}
}

// standardLab has pods a, b in x; a, b in y; c in z.
func standardLab(t *testing.T, name string, ranges ...string) *lab {
	l := newLab(t, name, ranges...)
	for _, ns := range []string{"x", "y", "z"} {
		l.namespace(ns, map[string]string{"ns": ns})
	}
	web := corev1.ContainerPort{Name: "web", ContainerPort: 80}
	l.pod("x", "a", map[string]string{"pod": "a"}, web)
	l.pod("x", "b", map[string]string{"pod": "b"}, corev1.ContainerPort{Name: "web", ContainerPort: 81})
	l.pod("y", "a", map[string]string{"pod": "a"}, web)
	l.pod("y", "b", map[string]string{"pod": "b"}, corev1.ContainerPort{Name: "dns", ContainerPort: 81, Protocol: corev1.ProtocolUDP})
	l.pod("z", "c", map[string]string{"pod": "c"}, web)
	return l
}

// scenarios: the pods of the lab are x/a, x/b, y/a, y/b, z/c. Addresses are .2 to .6 in that order.
func scenarios() []scenario {
	return []scenario{
		{"no policy", ``, func(_, _ string, _ uint8, _ uint16) bool { return true }},
		{"ingress denied", `
metadata: {namespace: x, name: deny}
spec: {podSelector: {}}`,
			func(_, to string, _ uint8, _ uint16) bool { return to[0] != 'x' }},
		{"egress denied", `
metadata: {namespace: x, name: deny}
spec: {podSelector: {}, policyTypes: [Egress]}`,
			func(from, _ string, _ uint8, _ uint16) bool { return from[0] != 'x' }},
		{"both denied", `
metadata: {namespace: x, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}`,
			func(from, to string, _ uint8, _ uint16) bool { return from[0] != 'x' && to[0] != 'x' }},
		{"all allowed beats denied", `
metadata: {namespace: x, name: deny}
spec: {podSelector: {}}
---
metadata: {namespace: x, name: open}
spec: {podSelector: {}, ingress: [{}]}`,
			func(_, _ string, _ uint8, _ uint16) bool { return true }},
		{"pods of the namespace by label", `
metadata: {namespace: x, name: p}
spec: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to != "x/a" || from == "x/b" }},
		{"namespaces by label", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || from[0] == 'y' }},
		{"pods and namespaces in one entry", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}, podSelector: {matchLabels: {pod: a}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || from == "y/a" }},
		{"pods or namespaces in two entries", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}, {podSelector: {matchLabels: {pod: a}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || from[0] == 'y' || from == "x/a" }},
		{"matchExpressions", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x, z]}]}, podSelector: {matchExpressions: [{key: pod, operator: Exists}]}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || from[0] == 'y' }},
		{"one port, TCP by default", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}`,
			func(_, to string, proto uint8, port uint16) bool { return to[0] != 'x' || proto == 6 && port == 80 }},
		{"one port of UDP", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}`,
			func(_, to string, proto uint8, port uint16) bool { return to[0] != 'x' || proto == 17 && port == 81 }},
		{"one port of SCTP", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: 81, protocol: SCTP}]}]}`,
			func(_, to string, proto uint8, port uint16) bool { return to[0] != 'x' || proto == 132 && port == 81 }},
		{"a protocol without port", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}`,
			func(_, to string, proto uint8, _ uint16) bool { return to[0] != 'x' || proto == 17 }},
		{"endPort", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: 81, endPort: 8080}]}]}`,
			func(_, to string, proto uint8, port uint16) bool {
				return to[0] != 'x' || proto == 6 && port >= 81 && port <= 8080
			}},
		{"named port, which differs by pod", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: web}]}]}`,
			func(_, to string, proto uint8, port uint16) bool {
				return to[0] != 'x' || proto == 6 && (to == "x/a" && port == 80 || to == "x/b" && port == 81)
			}},
		{"named port of another protocol or unknown", `
metadata: {namespace: "y", name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: web, protocol: UDP}, {port: dns, protocol: UDP}, {port: nothing}]}]}`,
			func(_, to string, proto uint8, port uint16) bool {
				return to[0] != 'y' || to == "y/b" && proto == 17 && port == 81
			}},
		{"named port outwards", `
metadata: {namespace: x, name: p}
spec: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`,
			func(from, to string, proto uint8, port uint16) bool {
				return from != "x/a" || proto == 6 && (port == 81 && to == "x/b" || port == 80 && selected(to, "y/a", "z/c"))
			}},
		{"egress to pods and port", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}], ports: [{port: 80}, {port: 80, protocol: UDP}]}], policyTypes: [Egress]}`,
			func(from, to string, proto uint8, port uint16) bool {
				return from[0] != 'x' || selected(to, "x/a", "y/a") && port == 80 && (proto == 6 || proto == 17)
			}},
		{"types derived: egress rules isolate both ways", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool {
				return to[0] != 'x' && (from[0] != 'x' || to[0] == 'y')
			}},
		{"ipBlock with except", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.255.80.0/28, except: [10.255.80.4/31]}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || !selected(from, "y/a", "y/b") }},
		{"ipBlock in an except of another", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.255.80.0/28, except: [10.255.80.4/31]}}], ports: [{port: 80}]}, {to: [{ipBlock: {cidr: 10.255.80.5/32}}]}]}`,
			func(from, to string, proto uint8, port uint16) bool {
				return from[0] != 'x' || to == "y/b" || selected(to, "x/a", "x/b", "z/c") && proto == 6 && port == 80
			}},
		{"union of policies", `
metadata: {namespace: x, name: p}
spec: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}
---
metadata: {namespace: x, name: q}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}`,
			func(from, to string, proto uint8, port uint16) bool {
				return to[0] != 'x' || from[0] == 'z' || to == "x/a" && from == "x/b" && proto == 6 && port == 80
			}},
		{"both ends have to allow", `
metadata: {namespace: x, name: out}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}
---
metadata: {namespace: "y", name: in}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool {
				return (from[0] != 'x' || to[0] == 'y') && (to[0] != 'y' || selected(from, "x/a", "y/a"))
			}},
		{"an empty list of rules after a full one", `
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [], policyTypes: [Ingress, Egress], egress: [{}]}`,
			func(_, to string, _ uint8, _ uint16) bool { return to[0] != 'x' }},
		{"admin denies before policies", `
metadata: {name: n}
spec: {tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {ns: z}}}]}]}
---
metadata: {namespace: x, name: open}
spec: {podSelector: {}, ingress: [{}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || from[0] != 'z' }},
		{"admin accepts before policies", `
metadata: {name: n}
spec: {tier: Admin, priority: 10, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}
---
metadata: {namespace: x, name: deny}
spec: {podSelector: {}}`,
			func(from, to string, proto uint8, port uint16) bool {
				return to[0] != 'x' || from == "z/c" && proto == 6 && port == 80
			}},
		{"pass leaves it to policies", `
metadata: {name: one}
spec: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {ns: "y"}}}]}]}
---
metadata: {name: two}
spec: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
metadata: {namespace: x, name: p}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to[0] != 'x' || from == "y/a" }},
		{"priority within the tier", `
metadata: {name: later}
spec: {tier: Admin, priority: 9, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
metadata: {name: sooner}
spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: x}}}]}]}`,
			func(from, _ string, _ uint8, _ uint16) bool { return from[0] == 'x' }},
		{"order of rules within a policy", `
metadata: {name: n}
spec: {tier: Admin, priority: 5, subject: {namespaces: {}}, egress: [{action: Accept, to: [{networks: [10.255.80.5/32]}]}, {action: Deny, to: [{networks: [10.255.80.4/30, "fd00::/8"]}]}]}`,
			func(_, to string, _ uint8, _ uint16) bool { return !selected(to, "y/a", "z/c") }},
		{"baseline holds where no policy does", `
metadata: {name: n}
spec: {tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
metadata: {namespace: x, name: p}
spec: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`,
			func(from, to string, _ uint8, _ uint16) bool { return to == "x/a" && from[0] == 'y' }},
		{"ranges, protocols and names of ports of cluster policies", `
metadata: {name: n}
spec: {tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 81, end: 9000}}}}, {udp: {}}, {destinationNamedPort: web}]}, {action: Deny, from: [{namespaces: {}}]}]}`,
			func(_, to string, proto uint8, port uint16) bool {
				return to[0] != 'x' || proto == 17 || proto == 6 && (port >= 81 || to == "x/a")
			}},
		{"what is unknown fails closed", `
metadata: {name: n}
spec: {tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Accept, to: [{}]}, {action: Pass, to: [{domainNames: [example.com]}]}]}`,
			func(from, _ string, _ uint8, _ uint16) bool { return from[0] != 'x' }},
	}
}

// cases are all pairs of pods, protocols and ports.
func (l *lab) cases(want func(from, to string, proto uint8, port uint16) bool, v6 bool) []expectation {
	var out []expectation
	for _, from := range l.order {
		for _, to := range l.order {
			if from == to {
				continue
			}
			for _, proto := range l.protocols() {
				for _, port := range labPorts {
					if proto == protoSCTP && port == 8080 {
						continue
					}
					out = append(out, expectation{from, to, proto, port, v6, want(from, to, proto, port)})
				}
			}
			out = append(out, expectation{from, to, icmpEcho, 0, v6, want(from, to, icmpEcho, 0)})
		}
	}
	return out
}

// TestTruthTable sends real packets for every scenario, and asks the decision function the same.
func TestTruthTable(t *testing.T) {
	l := standardLab(t, "701a", "10.255.80.0/28")
	if !l.sctp {
		t.Log("this kernel has no SCTP: left out")
	}
	total := 0
	for _, s := range scenarios() {
		l.clear()
		if s.policies != "" {
			l.apply(t, s.policies)
		}
		l.settled()
		cases := l.cases(s.want, false)
		total += len(cases)
		m := Read(l.store.Snapshot())
		for _, x := range cases {
			if got := l.evaluate(t, m, x); got.Allowed != x.want {
				t.Errorf("%s: %s: decided %v: %s; %s", s.name, x, got.Allowed, got.Egress, got.Ingress)
			}
		}
		l.check(s.name, cases)
		if t.Failed() && os.Getenv("CORACLE_TEST_KEEP") != "" {
			out, _ := exec.Command("nft", "list", "table", "inet", labTable+"701a").CombinedOutput()
			t.Logf("%s", out)
			return
		}
	}
	t.Logf("%d cases", total)
	if total < 500 {
		t.Errorf("only %d cases", total)
	}
}

func (l *lab) evaluate(t *testing.T, m *Model, x expectation) Verdict {
	t.Helper()
	name := map[uint8]corev1.Protocol{protoTCP: corev1.ProtocolTCP, protoUDP: corev1.ProtocolUDP, protoSCTP: corev1.ProtocolSCTP, icmpEcho: ICMP}
	from, to := l.members[x.from].pod, l.members[x.to].pod
	v, err := m.Evaluate(Flow{From: Peer{Namespace: from.Namespace, Pod: from.Name}, To: Peer{Namespace: to.Namespace, Pod: to.Name},
		Protocol: name[x.proto], Port: x.port, IPv6: x.v6})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
