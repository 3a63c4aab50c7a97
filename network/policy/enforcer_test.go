package policy

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/linux/namespace"
	"coracle.dev/coracle/network/networktest"
)

// TestKernelFollowsDecision compares what real packets meet with what the decision function says, for random policies that come and go.
// CORACLE_SEED repeats a run, CORACLE_TEST_SECONDS makes it longer.
func TestKernelFollowsDecision(t *testing.T) {
	seconds, _ := strconv.Atoi(cmp.Or(os.Getenv("CORACLE_TEST_SECONDS"), "10"))
	seed, _ := strconv.ParseUint(os.Getenv("CORACLE_SEED"), 10, 64)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("CORACLE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	l := standardLab(t, "701b", "10.255.81.0/28", "fd00:81::/120")
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	rounds, probes := 0, 0
	for ; time.Now().Before(end) && !t.Failed(); rounds++ {
		l.disturb(r)
		l.settled()
		m := Read(l.store.Snapshot())
		var cases []expectation
		for range probing {
			x := expectation{from: l.order[r.IntN(len(l.order))], to: l.order[r.IntN(len(l.order))], port: labPorts[r.IntN(len(labPorts))],
				proto: append(l.protocols(), icmpEcho)[r.IntN(len(l.protocols())+1)], v6: r.IntN(3) == 0}
			if x.from != x.to {
				x.want = l.evaluate(t, m, x).Allowed
				cases = append(cases, x)
			}
		}
		probes += len(cases)
		l.check(fmt.Sprintf("round %d", rounds), cases)
	}
	if t.Failed() {
		for e := range l.store.Snapshot().List("networkpolicies.networking.k8s.io", "", nil) {
			t.Logf("%+v", e.Object.(*networkingv1.NetworkPolicy).Spec)
		}
		for e := range l.store.Snapshot().List(ClusterPolicies, "", nil) {
			t.Logf("%+v", e.Object.(*policyv1alpha2.ClusterNetworkPolicy).Spec)
		}
	}
	t.Logf("%d rounds, %d probes", rounds, probes)
}

// disturb changes something: a policy comes, changes or goes, a pod or a namespace gets other labels.
func (l *lab) disturb(r *rand.Rand) {
	for range 1 + r.IntN(3) {
		name := fmt.Sprint("p", r.IntN(4))
		switch r.IntN(8) {
		case 0:
			l.remove("networkpolicies.networking.k8s.io", pick(r, "x", "y", "z"), name)
		case 1:
			l.remove(ClusterPolicies, "", name)
		case 2:
			m := l.members[l.order[r.IntN(len(l.order))]]
			p := m.pod.DeepCopy()
			p.Labels = map[string]string{"pod": pick(r, "a", "b", "c")}
			m.pod = p
			l.put("pods", p)
		case 3:
			l.namespace(pick(r, "x", "y", "z"), map[string]string{"ns": pick(r, "x", "y", "z")})
		case 4, 5:
			l.clusterPolicy(randomClusterPolicy(r, name))
		default:
			l.policy(randomPolicy(r, pick(r, "x", "y", "z"), name))
		}
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomSelector(r *rand.Rand, key string, values ...string) *metav1.LabelSelector {
	switch r.IntN(4) {
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: []string{pick(r, values...)}}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: pick(r, values...)}}
}

func randomPods(r *rand.Rand) *metav1.LabelSelector { return randomSelector(r, "pod", "a", "b", "c") }
func randomNamespaces(r *rand.Rand) *metav1.LabelSelector {
	return randomSelector(r, "ns", "x", "y", "z")
}

func randomPeers(r *rand.Rand) (out []networkingv1.NetworkPolicyPeer) {
	for range r.IntN(3) {
		switch r.IntN(4) {
		case 0:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: randomPods(r)})
		case 1:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: randomNamespaces(r)})
		case 2:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: randomNamespaces(r), PodSelector: randomPods(r)})
		default:
			b := pick(r, networkingv1.IPBlock{CIDR: "10.255.81.0/28", Except: []string{"10.255.81.4/31"}}, networkingv1.IPBlock{CIDR: "10.255.81.4/30"},
				networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.255.81.3/32", "10.255.81.6/32"}},
				networkingv1.IPBlock{CIDR: "fd00:81::/124", Except: []string{"fd00:81::4/127"}}, networkingv1.IPBlock{CIDR: "::/0"})
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: &b})
		}
	}
	return out
}

func randomPorts(r *rand.Rand) (out []networkingv1.NetworkPolicyPort) {
	for range r.IntN(3) {
		proto := pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch r.IntN(4) {
		case 0:
		case 1:
			name := intstr.FromString(pick(r, "web", "dns"))
			p.Port = &name
		case 2:
			from, end := intstr.FromInt32(pick[int32](r, 80, 81, 82)), pick[int32](r, 82, 8080, 65535)
			p.Port, p.EndPort = &from, &end
		default:
			number := intstr.FromInt32(int32(pick(r, labPorts...)))
			p.Port = &number
		}
		out = append(out, p)
	}
	return out
}

func randomPolicy(r *rand.Rand, namespace, name string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: *randomPods(r)}}
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: randomPeers(r), Ports: randomPorts(r)})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: randomPeers(r), Ports: randomPorts(r)})
	}
	np.Spec.PolicyTypes = pick(r, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	return np
}

func randomClusterPolicy(r *rand.Rand, name string) *policyv1alpha2.ClusterNetworkPolicy {
	cnp := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: policyv1alpha2.ClusterNetworkPolicySpec{
		Tier: pick(r, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier), Priority: r.Int32N(3)}}
	cnp.Spec.Subject.Namespaces = randomNamespaces(r)
	protocols := func() (out []policyv1alpha2.ClusterNetworkPolicyProtocol) {
		for range r.IntN(3) {
			port := &policyv1alpha2.Port{Number: int32(pick(r, labPorts...))}
			if r.IntN(2) == 0 {
				port = &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: 81, End: pick[int32](r, 82, 9000)}}
			}
			out = append(out, pick(r, policyv1alpha2.ClusterNetworkPolicyProtocol{TCP: &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}},
				policyv1alpha2.ClusterNetworkPolicyProtocol{UDP: &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}},
				policyv1alpha2.ClusterNetworkPolicyProtocol{SCTP: &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{}},
				policyv1alpha2.ClusterNetworkPolicyProtocol{DestinationNamedPort: "web"}))
		}
		return out
	}
	action := func() policyv1alpha2.ClusterNetworkPolicyRuleAction {
		return pick(r, policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)
	}
	for range r.IntN(3) {
		peer := policyv1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: randomNamespaces(r)}
		if r.IntN(2) == 0 {
			peer = policyv1alpha2.ClusterNetworkPolicyIngressPeer{Pods: &policyv1alpha2.NamespacedPod{NamespaceSelector: *randomNamespaces(r), PodSelector: *randomPods(r)}}
		}
		cnp.Spec.Ingress = append(cnp.Spec.Ingress, policyv1alpha2.ClusterNetworkPolicyIngressRule{Action: action(),
			From: []policyv1alpha2.ClusterNetworkPolicyIngressPeer{peer}, Protocols: protocols()})
	}
	for range r.IntN(3) {
		peer := pick(r, policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: randomNamespaces(r)}, policyv1alpha2.ClusterNetworkPolicyEgressPeer{},
			policyv1alpha2.ClusterNetworkPolicyEgressPeer{Networks: []policyv1alpha2.CIDR{"10.255.81.4/30", "fd00:81::/125"}},
			policyv1alpha2.ClusterNetworkPolicyEgressPeer{Nodes: &metav1.LabelSelector{}})
		cnp.Spec.Egress = append(cnp.Spec.Egress, policyv1alpha2.ClusterNetworkPolicyEgressRule{Action: action(),
			To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{peer}, Protocols: protocols()})
	}
	return cnp
}

func denyAll(namespace, name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}}}
}

// TestConnectionsAreCut opens connections and streams, forbids them, and sees that nothing goes through any more, in either direction.
func TestConnectionsAreCut(t *testing.T) {
	l := standardLab(t, "701c", "10.255.82.0/28")
	for _, proto := range []uint8{protoTCP, protoUDP} {
		l.clear()
		l.settled()
		a, b := l.members["x/a"], l.members["y/b"]
		var fd int
		var err error
		networktest.Inside(t, b.path, func() { fd, err = open(a.addrs[0], proto) })
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := ask(fd, a.addrs[0], proto, 80, time.Now().Add(patience)); !ok || err != nil {
			t.Fatalf("protocol %d: not open: %v", proto, err)
		}
		if proto == protoTCP && !exchange(fd, patience) {
			t.Fatal("an open connection carries nothing")
		}
		l.policy(denyAll("x", "deny"))
		l.settled()
		// What was on its way may still arrive.
		for ready(fd, unix.POLLIN, time.Now().Add(impatience)) {
			if n, err := unix.Read(fd, make([]byte, 64)); n <= 0 || err != nil {
				break
			}
		}
		for range 3 {
			if exchange(fd, impatience) {
				t.Errorf("protocol %d: an established connection goes on", proto)
			}
		}
		unix.Close(fd)
	}
	denied, err := l.enforcer.Denied()
	if err != nil || len(denied) != 1 || denied[0].Packets == 0 || denied[0].Policies[0] != (Ref{Namespace: "x", Name: "deny"}) || denied[0].Direction != Ingress {
		t.Errorf("counted %+v, %v", denied, err)
	}
}

// exchange sends something on an open socket and says whether an answer came.
func exchange(fd int, wait time.Duration) bool {
	if _, err := unix.Write(fd, []byte("!")); err != nil {
		return false
	}
	if !ready(fd, unix.POLLIN, time.Now().Add(wait)) {
		return false
	}
	n, err := unix.Read(fd, make([]byte, 64))
	return n > 0 && err == nil
}

// TestRestartOpensNoGap connects without a pause while the program restarts many times.
func TestRestartOpensNoGap(t *testing.T) {
	l := standardLab(t, "701d", "10.255.83.0/28")
	l.policy(denyAll("x", "deny"))
	l.settled()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var fd int
			var err error
			networktest.Inside(t, l.members["y/a"].path, func() { fd, err = open(l.members["x/a"].addrs[0], protoUDP) })
			if err != nil {
				t.Error(err)
				return
			}
			for range 200 { // many new flows in a short time: each from a socket of its own would be slower
				_ = unix.Connect(fd, sockaddr(l.members["x/a"].addrs[0], 80))
				_, _ = unix.Write(fd, []byte("?"))
			}
			if ready(fd, unix.POLLIN, time.Now().Add(10*time.Millisecond)) {
				if n, err := unix.Read(fd, make([]byte, 8)); n > 0 && err == nil {
					t.Error("a packet went through during a restart")
				}
			}
			unix.Close(fd)
		}
	})
	for range 30 {
		l.stop()
		l.start(labTable + "701d")
	}
	close(stop)
	wg.Wait()
}

// TestFirstConnect starts pods whose first act, as soon as they have a link, is to send to one that they may not reach: no packet goes
// through. Labels of the pods are those that a policy denies. CORACLE_TEST_STARTS makes more of them than fit into some seconds.
func TestFirstConnect(t *testing.T) {
	starts, _ := strconv.Atoi(os.Getenv("CORACLE_TEST_STARTS"))
	l := newLab(t, "701e", "10.255.84.0/24")
	l.namespace("x", map[string]string{"ns": "x"})
	target := l.pod("x", "target", map[string]string{"role": "target"})
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "out"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"role": "bad"}}, PolicyTypes: []networkingv1.PolicyType{"Egress"}}}
	l.policy(np)
	l.settled()
	// What arrives is heard here, and not only by who sent it.
	heard := make(chan struct{}, 1)
	var ear int
	networktest.Inside(t, target.path, func() { ear, _ = serve(unix.IPPROTO_UDP, 9999) })
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 8)
		for {
			n, from, err := unix.Recvfrom(ear, buf, 0)
			if n > 0 {
				select {
				case heard <- struct{}{}:
				default:
				}
			}
			if err != nil && err != unix.EAGAIN && err != unix.EINTR || err == nil && from == nil {
				return
			}
		}
	})
	defer func() { _ = unix.Shutdown(ear, unix.SHUT_RDWR); unix.Close(ear); done.Wait() }()
	end := time.Now().Add(8 * time.Second)
	var current Local
	l.pods.BeforeUp(func(_ context.Context, sandbox string, addrs []netip.Addr) error {
		if !strings.HasPrefix(sandbox, "race") {
			return nil
		}
		current.Addrs = addrs
		return l.enforcer.Admit(current)
	})
	l.pods.AfterDown(func(_ context.Context, sandbox string, addrs []netip.Addr) error {
		return l.enforcer.Release(sandbox, addrs)
	})
	n := 0
	for ; (starts == 0 && time.Now().Before(end)) || n < starts; n++ {
		name := fmt.Sprint("race", n)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: types.UID(name), Labels: map[string]string{"role": "bad"}},
			Spec: corev1.PodSpec{NodeName: labNode}}
		l.put("pods", pod)
		current = Local{Sandbox: name, Pod: pod}
		l.firstPacket(name, target.addrs[0])
		l.remove("pods", "x", name)
	}
	select {
	case <-heard:
		t.Error("a packet that policy forbids went through")
	default:
	}
	t.Logf("%d starts", n)
	// The same without the policy is heard: the test can fail.
	l.clear()
	l.settled()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "free"}, Spec: corev1.PodSpec{NodeName: labNode}}
	current = Local{Sandbox: "race-free", Pod: pod}
	l.firstPacket("race-free", target.addrs[0])
	select {
	case <-heard:
	case <-time.After(patience):
		t.Error("nothing is heard without the policy")
	}
}

// firstPacket starts a pod that sends from before its link is there until it is up, and some more.
func (l *lab) firstPacket(name string, to netip.Addr) {
	dir := l.t.(*testing.T).TempDir()
	if err := namespace.Pin(dir, []namespace.Type{namespace.Net}, nil); err != nil {
		l.t.Fatal(err)
	}
	path := dir + "/net"
	defer func() {
		if err := namespace.Unpin(path); err != nil {
			l.t.Error(err)
		}
	}()
	var sender sync.WaitGroup
	up := make(chan struct{})
	sender.Go(func() {
		err := namespace.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for {
				_ = unix.Sendto(fd, []byte("!"), 0, sockaddr(to, 9999)) // until there is a link: network is unreachable
				select {
				case <-up:
					return unix.Sendto(fd, []byte("!"), 0, sockaddr(to, 9999))
				default:
				}
			}
		}, path)
		if err != nil {
			l.t.Error(err)
		}
	})
	ctx := context.Background()
	_, err := l.pods.Attach(ctx, name, path, name)
	close(up)
	sender.Wait()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.pods.Detach(ctx, name, path); err != nil {
		l.t.Fatal(err)
	}
}

// TestNothingIsLeft changes much, and sees that the table is at the end as it was at the beginning.
func TestNothingIsLeft(t *testing.T) {
	l := standardLab(t, "701f", "10.255.85.0/28", "fd00:85::/120")
	empty := tableContent(t, labTable+"701f")
	r := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		l.disturb(r)
		l.settled()
	}
	for name, m := range l.members { // the labels of the beginning matter to nobody once there are no policies
		if err := l.enforcer.Admit(Local{Sandbox: name, Pod: m.pod, Addrs: m.addrs}); err != nil {
			t.Fatal(err)
		}
	}
	if tableContent(t, labTable+"701f") == empty {
		t.Fatal("there is nothing in the table: the test says nothing")
	}
	l.clear()
	l.settled()
	if left := tableContent(t, labTable+"701f"); left != empty {
		t.Errorf("left behind:\n%s\nat first:\n%s", left, empty)
	}
	if p := l.enforcer.plan; len(p.chains)+len(p.bindings)+len(p.applied)+len(p.policies)+len(l.enforcer.refusals) != 0 {
		t.Errorf("remembered: %d chains, %d bindings, %d refusals, %d policies", len(p.chains), len(p.bindings), len(p.applied), len(p.policies))
	}
}

// tableContent counts what is in a table.
func tableContent(t *testing.T, name string) string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	var out []string
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range chains {
		if chain.Table.Name == name {
			rules, err := c.GetRules(table, chain)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("chain %s: %d rules", chain.Name, len(rules)))
		}
	}
	sets, err := c.GetSets(table)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		elements, err := c.GetSetElements(set)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(set.Name, "cut") { // those go by themselves
			out = append(out, fmt.Sprintf("set %s: %d elements", set.Name, len(elements)))
		}
	}
	objects, err := c.GetObjects(table)
	if err != nil {
		t.Fatal(err)
	}
	out = append(out, fmt.Sprintf("%d counters", len(objects)))
	slices.Sort(out)
	return strings.Join(out, "\n")
}
