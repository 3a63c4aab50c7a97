package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/network/policy"
)

func newPolicyMatrix() *cobra.Command {
	p := &policyCommand{wide: true}
	c := &cobra.Command{
		Use:   "matrix",
		Short: "Print who can reach whom, and at which ports",
		Long: `Print who can reach whom, and at which ports. Pods that policies treat in the same way are one line, however many
they are. "outside" stands for an address that belongs to nobody in the cluster and that no policy names. With -n, only traffic
from or to pods of that namespace is shown.`,
		Example: "  coracle policy matrix -n shop",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.load(cmd)
			if err != nil {
				return err
			}
			only := ""
			if cmd.Flags().Changed("namespace") {
				only = s.namespace
			}
			m := newMatrix(s, only, s.policies)
			cells, err := m.fill(s.model)
			if err != nil {
				return err
			}
			m.merge(cells)
			if p.output == "json" {
				return encode(cmd.OutOrStdout(), m.json(cells))
			}
			return m.print(cmd.OutOrStdout(), cells, p.output == "wide")
		},
	}
	p.add(c)
	return c
}

func newPolicyWhatIf() *cobra.Command {
	p := &policyCommand{wide: true}
	var file string
	var remove []string
	c := &cobra.Command{
		Use:   "what-if [-f FILE] [--delete KIND/NAME]",
		Short: "Show which traffic would be allowed or denied if policies were different",
		Long: `Show which traffic would be allowed or denied if the policies of a file were applied, and others deleted. Nothing is
changed in the cluster.`,
		Example: "  coracle policy what-if -f deny-all.yaml --delete networkpolicy/shop/old",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" && len(remove) == 0 {
				return fmt.Errorf("say what would be different: -f FILE, or --delete KIND/NAME")
			}
			s, err := p.load(cmd)
			if err != nil {
				return err
			}
			next, err := s.next(file, remove)
			if err != nil {
				return err
			}
			// Those who are alike under the old and the new policies are one line.
			both := policies{append(slices.Clone(s.policies.plain), next.plain...), append(slices.Clone(s.policies.cluster), next.cluster...)}
			only := ""
			if cmd.Flags().Changed("namespace") {
				only = s.namespace
			}
			m := newMatrix(s, only, both)
			before, err := m.fill(s.model)
			if err != nil {
				return err
			}
			changed := s.model.With(next.plain, next.cluster)
			after, err := m.fill(changed)
			if err != nil {
				return err
			}
			m.merge(before, after)
			changes := m.changes(before, after)
			if p.output == "json" {
				return encode(cmd.OutOrStdout(), changes)
			}
			return printChanges(cmd.OutOrStdout(), changes)
		},
	}
	p.add(c)
	c.Flags().StringVarP(&file, "filename", "f", "", `a file with policies, "-" for standard input`)
	c.Flags().StringSliceVar(&remove, "delete", nil, "a policy that would not be there: networkpolicy/NAME, networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME")
	return c
}

// next is the policies as they would be.
func (s *situation) next(file string, remove []string) (policies, error) {
	var put policies
	if file != "" {
		in := os.Stdin
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return put, err
			}
			defer f.Close()
			in = f
		}
		var err error
		if put, err = readPolicies(in, file, s.namespace); err != nil {
			return put, err
		}
	}
	var refs []policy.Ref
	for _, text := range remove {
		parts := strings.Split(text, "/")
		switch kind := strings.ToLower(parts[0]); {
		case len(parts) == 2 && (kind == "clusternetworkpolicy" || kind == "clusternetworkpolicies" || kind == "cnp"):
			refs = append(refs, policy.Ref{Cluster: true, Name: parts[1]})
		case len(parts) == 2 && (kind == "networkpolicy" || kind == "networkpolicies" || kind == "netpol"):
			refs = append(refs, policy.Ref{Namespace: s.namespace, Name: parts[1]})
		case len(parts) == 3 && (kind == "networkpolicy" || kind == "networkpolicies" || kind == "netpol"):
			refs = append(refs, policy.Ref{Namespace: parts[1], Name: parts[2]})
		default:
			return put, fmt.Errorf("--delete %s: write networkpolicy/NAME, networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME", text)
		}
	}
	return s.policies.changed(put, refs)
}

// matrix is who is asked about whom. Groups are of pods between which no policy can tell a difference.
type matrix struct {
	groups []*group
	probes []probe
}

// group is one line and one column.
type group struct {
	names   []string // "namespace/pod", or "outside"
	peers   []policy.Peer
	shown   bool // its line and column are asked for
	outside bool
}

// name says who is in a group, in short.
func (g *group) name() string {
	if g.outside && len(g.names) == 1 {
		return "outside"
	}
	if n := len(g.names); n > 2 {
		return fmt.Sprintf("%s, %s and %d more", g.names[0], g.names[1], n-2)
	}
	return strings.Join(g.names, ", ")
}

// probe stands for all ports of a protocol from first to last, which no policy tells apart.
type probe struct {
	protocol    corev1.Protocol
	first, last uint16
}

// cell is what is allowed from one group to another: for each probe, and why not for the first that is denied.
type cell struct {
	allowed []bool
	why     string
}

// newMatrix sorts pods into groups by what the policies can see of them.
func newMatrix(s *situation, only string, p policies) *matrix {
	seen := lookAt(p)
	m := &matrix{probes: seen.probes(s)}
	byKey := map[string]*group{}
	for _, peer := range s.model.Pods() {
		pod, ok := client.Pods.Get(s.snapshot, peer.Namespace, peer.Pod)
		if !ok {
			continue
		}
		key := seen.key(pod)
		g := byKey[key]
		if g == nil {
			g = &group{}
			byKey[key] = g
			m.groups = append(m.groups, g)
		}
		g.names = append(g.names, peer.Namespace+"/"+peer.Pod)
		g.peers = append(g.peers, peer)
		g.shown = g.shown || only == "" || peer.Namespace == only
	}
	m.groups = append(m.groups, &group{names: []string{"outside"}, peers: []policy.Peer{{Addr: seen.nobody(s)}}, outside: true})
	return m
}

// visible is what policies look at.
type visible struct {
	labels map[string]bool
	blocks []netip.Prefix
	ports  map[corev1.Protocol]map[uint16]bool // where another range begins
	names  map[string]bool
}

func lookAt(p policies) *visible {
	v := &visible{labels: map[string]bool{}, names: map[string]bool{}, ports: map[corev1.Protocol]map[uint16]bool{
		corev1.ProtocolTCP: {1: true}, corev1.ProtocolUDP: {1: true}, corev1.ProtocolSCTP: {1: true}}}
	for _, np := range p.plain {
		v.selector(&np.Spec.PodSelector)
		for i := range np.Spec.Ingress {
			v.rule(np.Spec.Ingress[i].From, np.Spec.Ingress[i].Ports)
		}
		for i := range np.Spec.Egress {
			v.rule(np.Spec.Egress[i].To, np.Spec.Egress[i].Ports)
		}
	}
	for _, cnp := range p.cluster {
		v.pods(cnp.Spec.Subject.Pods)
		for i := range cnp.Spec.Ingress {
			r := &cnp.Spec.Ingress[i]
			for j := range r.From {
				v.pods(r.From[j].Pods)
			}
			v.protocols(r.Protocols)
		}
		for i := range cnp.Spec.Egress {
			r := &cnp.Spec.Egress[i]
			for j := range r.To {
				v.pods(r.To[j].Pods)
				for _, n := range r.To[j].Networks {
					v.block(string(n))
				}
			}
			v.protocols(r.Protocols)
		}
	}
	return v
}

func (v *visible) selector(s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	for key := range s.MatchLabels {
		v.labels[key] = true
	}
	for i := range s.MatchExpressions {
		v.labels[s.MatchExpressions[i].Key] = true
	}
}

func (v *visible) pods(p *policyv1alpha2.NamespacedPod) {
	if p != nil {
		v.selector(&p.PodSelector)
	}
}

func (v *visible) block(text string) {
	if p, err := netip.ParsePrefix(text); err == nil {
		v.blocks = append(v.blocks, p.Masked())
	}
}

func (v *visible) rule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	for i := range peers {
		v.selector(peers[i].PodSelector)
		if b := peers[i].IPBlock; b != nil {
			v.block(b.CIDR)
			for _, e := range b.Except {
				v.block(e)
			}
		}
	}
	for _, p := range ports {
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		switch {
		case p.Port == nil:
		case p.Port.Type == intstr.String:
			v.names[p.Port.StrVal] = true
		case p.EndPort != nil:
			v.between(proto, p.Port.IntVal, *p.EndPort)
		default:
			v.between(proto, p.Port.IntVal, p.Port.IntVal)
		}
	}
}

func (v *visible) protocols(list []policyv1alpha2.ClusterNetworkPolicyProtocol) {
	port := func(proto corev1.Protocol, p *policyv1alpha2.Port) {
		switch {
		case p == nil:
		case p.Range != nil:
			v.between(proto, p.Range.Start, p.Range.End)
		case p.Number != 0:
			v.between(proto, p.Number, p.Number)
		}
	}
	for _, p := range list {
		switch {
		case p.TCP != nil:
			port(corev1.ProtocolTCP, p.TCP.DestinationPort)
		case p.UDP != nil:
			port(corev1.ProtocolUDP, p.UDP.DestinationPort)
		case p.SCTP != nil:
			port(corev1.ProtocolSCTP, p.SCTP.DestinationPort)
		case p.DestinationNamedPort != "":
			v.names[p.DestinationNamedPort] = true
		}
	}
}

func (v *visible) between(proto corev1.Protocol, first, last int32) {
	if v.ports[proto] == nil || first < 1 || last > 65535 {
		return
	}
	v.ports[proto][uint16(first)] = true
	if last < 65535 {
		v.ports[proto][uint16(last+1)] = true
	}
}

// namedPorts visits the ports of a pod that have names that policies use.
func (v *visible) namedPorts(pod *corev1.Pod, visit func(p *corev1.ContainerPort)) {
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			for j := range containers[i].Ports {
				if p := &containers[i].Ports[j]; p.Name != "" && v.names[p.Name] {
					visit(p)
				}
			}
		}
	}
}

// key is all that policies can see of a pod.
func (v *visible) key(pod *corev1.Pod) string {
	var b strings.Builder
	b.WriteString(pod.Namespace)
	for _, key := range sortedKeys(v.labels) {
		if value, ok := pod.Labels[key]; ok {
			fmt.Fprintf(&b, " %q=%q", key, value)
		}
	}
	v.namedPorts(pod, func(p *corev1.ContainerPort) { fmt.Fprintf(&b, " %s/%s/%d", p.Name, p.Protocol, p.ContainerPort) })
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		for i, block := range v.blocks {
			if err == nil && block.Contains(addr) {
				fmt.Fprintf(&b, " %d", i)
			}
		}
	}
	return b.String()
}

func sortedKeys(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// probes are the ranges of ports between which policies can tell a difference.
func (v *visible) probes(s *situation) []probe {
	if len(v.names) > 0 {
		for pod := range client.Pods.List(s.snapshot, "") {
			v.namedPorts(pod, func(p *corev1.ContainerPort) {
				proto := p.Protocol
				if proto == "" {
					proto = corev1.ProtocolTCP
				}
				v.between(proto, p.ContainerPort, p.ContainerPort)
			})
		}
	}
	var out []probe
	for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		var starts []uint16
		for p := range v.ports[proto] {
			starts = append(starts, p)
		}
		slices.Sort(starts)
		for i, first := range starts {
			last := uint16(65535)
			if i+1 < len(starts) {
				last = starts[i+1] - 1
			}
			out = append(out, probe{proto, first, last})
		}
	}
	return append(out, probe{protocol: policy.ICMP})
}

// nobody is an address that no policy names and nobody in the cluster has, as far as there is one among those for documentation.
func (v *visible) nobody(s *situation) netip.Addr {
	for _, text := range []string{"198.51.100.1", "203.0.113.1", "192.0.2.1", "198.18.0.1", "240.0.0.1"} {
		addr := netip.MustParseAddr(text)
		if !slices.ContainsFunc(v.blocks, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(addr) }) {
			return addr
		}
	}
	return netip.MustParseAddr("198.51.100.1")
}

// fill asks about every pair of groups that is shown; others are nil. Between two pods of a group the first two are asked about.
func (m *matrix) fill(model *policy.Model) ([][]*cell, error) {
	out := make([][]*cell, len(m.groups))
	for i, from := range m.groups {
		out[i] = make([]*cell, len(m.groups))
		for j, to := range m.groups {
			if !from.shown && !to.shown || from.outside && to.outside {
				continue
			}
			target := to.peers[0]
			if i == j {
				if len(to.peers) < 2 {
					continue // a pod always reaches itself
				}
				target = to.peers[1]
			}
			c, err := m.ask(model, from.peers[0], target)
			if err != nil {
				return nil, err
			}
			out[i][j] = c
		}
	}
	return out, nil
}

func (m *matrix) ask(model *policy.Model, from, to policy.Peer) (*cell, error) {
	c := &cell{allowed: make([]bool, len(m.probes))}
	for n, p := range m.probes {
		v, err := model.Evaluate(policy.Flow{From: from, To: to, Protocol: p.protocol, Port: p.first})
		if err != nil {
			return nil, err
		}
		if c.allowed[n] = v.Allowed; !v.Allowed && c.why == "" {
			c.why = v.Decided().String()
		}
	}
	return c, nil
}

// merge joins groups that behave alike towards all others, in all of the given fillings, which it changes.
func (m *matrix) merge(fillings ...[][]*cell) {
	for i := 0; i < len(m.groups); i++ {
		for j := len(m.groups) - 1; j > i; j-- {
			if m.groups[i].outside || m.groups[j].outside || m.groups[i].shown != m.groups[j].shown {
				continue
			}
			if slices.ContainsFunc(fillings, func(cells [][]*cell) bool { return !alike(cells, i, j) }) {
				continue
			}
			g := m.groups[i]
			g.names, g.peers = append(g.names, m.groups[j].names...), append(g.peers, m.groups[j].peers...)
			for k := range fillings {
				inner := fillings[k][i][j]
				fillings[k] = slices.Delete(fillings[k], j, j+1)
				for row := range fillings[k] {
					fillings[k][row] = slices.Delete(fillings[k][row], j, j+1)
				}
				if fillings[k][i][i] == nil {
					fillings[k][i][i] = inner
				}
			}
			m.groups = slices.Delete(m.groups, j, j+1)
		}
	}
}

func alike(cells [][]*cell, a, b int) bool {
	for k := range cells {
		if k == a || k == b {
			continue
		}
		if !equalCells(cells[a][k], cells[b][k]) || !equalCells(cells[k][a], cells[k][b]) {
			return false
		}
	}
	inner := cells[a][b]
	return equalCells(inner, cells[b][a]) && (cells[a][a] == nil || equalCells(inner, cells[a][a])) && (cells[b][b] == nil || equalCells(inner, cells[b][b]))
}

func equalCells(a, b *cell) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.allowed, b.allowed)
}

// text says what is allowed: "all", "none", or the ports.
func (m *matrix) text(c *cell) string {
	if c == nil {
		return "-"
	}
	if !slices.Contains(c.allowed, false) {
		return "all"
	}
	if !slices.Contains(c.allowed, true) {
		return "none"
	}
	var words []string
	for i := 0; i < len(m.probes); i++ {
		if !c.allowed[i] {
			continue
		}
		p := m.probes[i]
		if p.protocol == policy.ICMP {
			words = append(words, "icmp")
			continue
		}
		for i+1 < len(m.probes) && c.allowed[i+1] && m.probes[i+1].protocol == p.protocol {
			i++
			p.last = m.probes[i].last
		}
		words = append(words, p.text())
	}
	return strings.Join(words, ",")
}

func (p probe) text() string {
	name := strings.ToLower(string(p.protocol))
	switch {
	case p.first == 1 && p.last == 65535:
		return name
	case p.first == p.last:
		return name + "/" + strconv.Itoa(int(p.first))
	}
	return fmt.Sprintf("%s/%d-%d", name, p.first, p.last)
}

// print writes a table whose columns are numbered as its lines are.
func (m *matrix) print(out io.Writer, cells [][]*cell, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "#\tFROM \\ TO\tPODS")
	for i := range m.groups {
		fmt.Fprintf(w, "\t%d", i+1)
	}
	fmt.Fprintln(w)
	for i, g := range m.groups {
		count := strconv.Itoa(len(g.peers))
		if g.outside {
			count = "-"
		}
		fmt.Fprintf(w, "%d\t%s\t%s", i+1, g.name(), count)
		for j := range m.groups {
			fmt.Fprintf(w, "\t%s", m.text(cells[i][j]))
		}
		fmt.Fprintln(w)
	}
	if wide {
		fmt.Fprintln(w)
		for i, g := range m.groups {
			fmt.Fprintf(w, "%d\t%s\n", i+1, strings.Join(g.names, " "))
		}
	}
	return w.Flush()
}

// pair is a cell for programs.
type pair struct {
	From    []string `json:"from"`
	To      []string `json:"to"`
	Allowed string   `json:"allowed"`
	// Why says what denies the first thing that is denied.
	Why string `json:"why,omitempty"`
}

func (m *matrix) json(cells [][]*cell) []pair {
	out := []pair{}
	for i, from := range m.groups {
		for j, to := range m.groups {
			if c := cells[i][j]; c != nil {
				out = append(out, pair{from.names, to.names, m.text(c), c.why})
			}
		}
	}
	return out
}

// change is a cell that is not as it was.
type change struct {
	From   []string `json:"from"`
	To     []string `json:"to"`
	Before string   `json:"before"`
	After  string   `json:"after"`
	// Why says what denies the first thing that is denied then or, where nothing is, what denied before.
	Why string `json:"why,omitempty"`
}

func (m *matrix) changes(before, after [][]*cell) []change {
	out := []change{}
	for i, from := range m.groups {
		for j, to := range m.groups {
			was, is := before[i][j], after[i][j]
			if equalCells(was, is) {
				continue
			}
			why := is.why
			if why == "" {
				why = "before: " + was.why
			}
			out = append(out, change{from.names, to.names, m.text(was), m.text(is), why})
		}
	}
	return out
}

func printChanges(out io.Writer, changes []change) error {
	if len(changes) == 0 {
		_, err := fmt.Fprintln(out, "Nothing would change.")
		return err
	}
	for _, c := range changes {
		if _, err := fmt.Fprintf(out, "%s -> %s: %s, now %s\n  %s\n", few(c.From), few(c.To), c.After, c.Before, c.Why); err != nil {
			return err
		}
	}
	return nil
}
