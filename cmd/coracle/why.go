package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/scheduler"
)

func newWhy() *cobra.Command {
	flags := genericclioptions.NewConfigFlags(true)
	var dir, output string
	var most int
	c := &cobra.Command{
		Use:   "why pod/NAME | namespace/NAME",
		Short: "Say why a pod is where it is or pending, or what keeps a namespace from going away",
		Long: `Say, node by node and rule by rule, why a pod is where it is, or why it is pending and what would have
to change. It reads what the cluster has now, with your own rights, and applies the scheduler's rules to it; of a pod that
has a node it says what each node would be worth if it were to be chosen now.

Of a namespace that is being deleted it names the objects that are still there, and what holds each of them.`,
		Example: "  coracle why pod/web-0 -n shop\n  coracle why namespace/shop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf(`output %q is not known: write "json" or leave it out`, output)
			}
			namespace, ofNamespace := namespaceName(args[0])
			name, err := podName(args[0])
			if err != nil && !ofNamespace {
				return err
			}
			admin := filepath.Join(dir, "admin.kubeconfig")
			if _, err := os.Stat(admin); err == nil && (cmd.Flags().Changed("data-dir") || !namesConfig(os.Args)) {
				flags.KubeConfig = &admin
			}
			if ofNamespace {
				return whyNamespace(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), flags, namespace, output)
			}
			report, notes, err := why(cmd.Context(), flags, name)
			if err != nil {
				return err
			}
			for _, note := range notes {
				fmt.Fprintln(cmd.ErrOrStderr(), "coracle: "+note)
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(report)
			}
			return printReport(cmd.OutOrStdout(), report, most, time.Now())
		},
	}
	addDataDir(c, &dir)
	c.Flags().StringVarP(&output, "output", "o", "", `"json" for a form that programs read`)
	c.Flags().IntVar(&most, "nodes", 10, "how many nodes to show, those nearest to taking the pod first; 0 for all")
	flags.AddFlags(c.Flags())
	return c
}

// podName reads "pod/NAME" or "NAME".
func podName(arg string) (string, error) {
	kind, name, ok := strings.Cut(arg, "/")
	switch {
	case !ok && kind != "":
		return kind, nil
	case name != "" && slices.Contains([]string{"pod", "pods", "po"}, strings.ToLower(kind)):
		return name, nil
	}
	return "", fmt.Errorf("%q is neither a pod nor a namespace: write pod/NAME or namespace/NAME", arg)
}

// whyTimeout bounds the reading of everything that the rules look at.
const whyTimeout = 2 * time.Minute

// why reads what the rules look at, as the user, and applies them. notes say what the user may not read, which is then
// taken not to exist.
func why(ctx context.Context, flags *genericclioptions.ConfigFlags, name string) (*scheduler.Report, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, whyTimeout)
	defer cancel()
	loader := flags.ToRawKubeConfigLoader()
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, nil, err
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, nil, err
	}
	config.ContentType, config.QPS, config.Burst = runtime.ContentTypeProtobuf, -1, 0
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	pod, err := set.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	state, notes, err := read(ctx, set, namespace)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the scheduler's rules need all nodes and pods", err)
	}
	report, err := state.Why(pod)
	return report, notes, err
}

// list reads one resource.
type list struct {
	resource string
	// needed says that there is no answer without it.
	needed bool
	read   func(context.Context, metav1.ListOptions) (runtime.Object, error)
}

// as drops the type of a list.
func as[L runtime.Object](f func(context.Context, metav1.ListOptions) (L, error)) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return f(ctx, o) }
}

// read lists everything that the rules may look at for a pod of a namespace.
func read(ctx context.Context, set kubernetes.Interface, namespace string) (*scheduler.State, []string, error) {
	lists := []list{
		{client.Nodes.Name, true, as(set.CoreV1().Nodes().List)},
		{client.Pods.Name, true, as(set.CoreV1().Pods("").List)},
		{client.Namespaces.Name, false, as(set.CoreV1().Namespaces().List)},
		{client.PersistentVolumeClaims.Name, false, as(set.CoreV1().PersistentVolumeClaims("").List)},
		{client.PersistentVolumes.Name, false, as(set.CoreV1().PersistentVolumes().List)},
		{client.StorageClasses.Name, false, as(set.StorageV1().StorageClasses().List)},
		{client.CSINodes.Name, false, as(set.StorageV1().CSINodes().List)},
		{client.VolumeAttachments.Name, false, as(set.StorageV1().VolumeAttachments().List)},
		{"csidrivers.storage.k8s.io", false, as(set.StorageV1().CSIDrivers().List)},
		{"csistoragecapacities.storage.k8s.io", false, as(set.StorageV1().CSIStorageCapacities("").List)},
		{client.ResourceClaims.Name, false, as(set.ResourceV1().ResourceClaims("").List)},
		{client.ResourceSlices.Name, false, as(set.ResourceV1().ResourceSlices().List)},
		{client.DeviceClasses.Name, false, as(set.ResourceV1().DeviceClasses().List)},
		{client.DeviceTaintRules.Name, false, as(set.ResourceV1().DeviceTaintRules().List)},
		{client.Services.Name, false, as(set.CoreV1().Services(namespace).List)},
		{client.ReplicationControllers.Name, false, as(set.CoreV1().ReplicationControllers(namespace).List)},
		{client.ReplicaSets.Name, false, as(set.AppsV1().ReplicaSets(namespace).List)},
		{client.StatefulSets.Name, false, as(set.AppsV1().StatefulSets(namespace).List)},
		{client.PodDisruptionBudgets.Name, false, as(set.PolicyV1().PodDisruptionBudgets("").List)},
	}
	state := &scheduler.State{}
	var notes []string
	for _, l := range lists {
		objects, err := l.read(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			if err = fmt.Errorf("reading %s: %w", l.resource, err); l.needed || ctx.Err() != nil {
				return nil, nil, err
			}
			notes = append(notes, err.Error()+"; the answer is given as if there were none")
			continue
		}
		err = meta.EachListItem(objects, func(item runtime.Object) error {
			object, ok := item.(api.Object)
			if !ok {
				return errors.New("the server sent what is not an object")
			}
			state.Add(l.resource, object)
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return state, notes, nil
}

// printReport writes a report for people.
func printReport(out io.Writer, r *scheduler.Report, most int, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	headline(w, r, now)
	for _, f := range r.Pod {
		printFinding(w, "", f)
	}
	for _, d := range r.Domains {
		printDomains(w, d)
	}
	switch {
	case r.State == "Finished":
	case r.Node != "":
		printChoice(w, r, most)
	default:
		printNodes(w, r, most)
	}
	return w.Flush()
}

func headline(w io.Writer, r *scheduler.Report, now time.Time) {
	name := r.Namespace + "/" + r.Name
	when := ""
	if r.Decided != nil {
		when = fmt.Sprintf(", since %s (%s ago)", r.Decided.UTC().Format(time.RFC3339), now.Sub(*r.Decided).Round(time.Second))
	}
	switch r.State {
	case "Scheduled":
		fmt.Fprintf(w, "%s is on node %s%s.\n", name, r.Node, strings.Replace(when, "since", "as decided at", 1))
		if len(r.Kubelet) > 0 {
			fmt.Fprintln(w, "The node reports:")
			for _, line := range r.Kubelet {
				fmt.Fprintln(w, "  "+line)
			}
			fmt.Fprintf(w, "  see `kubectl describe pod %s -n %s` and `kubectl logs %s -n %s`\n", r.Name, r.Namespace, r.Name, r.Namespace)
		}
		return
	case "Finished":
		fmt.Fprintf(w, "%s has ended", name)
		if r.Node != "" {
			fmt.Fprintf(w, " on node %s", r.Node)
		}
		fmt.Fprintln(w, ".")
		for _, line := range r.Kubelet {
			fmt.Fprintln(w, "  "+line)
		}
		return
	case "Terminating":
		fmt.Fprintf(w, "%s is being deleted and gets no node any more.\n", name)
	case "Gated":
		fmt.Fprintf(w, "%s is held back by scheduling gates%s.\n", name, when)
	default:
		fmt.Fprintf(w, "%s is pending%s.\n", name, when)
	}
	if r.Nominated != "" {
		fmt.Fprintf(w, "Room is being made for it on node %s.\n", r.Nominated)
	}
	if r.Said != "" {
		fmt.Fprintf(w, "The scheduler said: %s\n", r.Said)
	}
	if r.Now != "" && r.Now != r.Said {
		fmt.Fprintf(w, "Now it would say:   %s\n", r.Now)
	}
}

func printFinding(w io.Writer, indent string, f scheduler.Finding) {
	fmt.Fprintf(w, "%s%s\t%s\n", indent, f.Rule, f.Why)
	if f.Change != "" {
		fmt.Fprintf(w, "%s\t-> %s\n", indent, f.Change)
	}
}

func printDomains(w io.Writer, d scheduler.Domains) {
	kind := "is spread"
	if !d.Hard {
		kind = "prefers to be spread"
	}
	var counts []string
	for value, n := range d.Counts {
		counts = append(counts, fmt.Sprintf("%s %d", value, n))
	}
	slices.Sort(counts)
	if len(counts) > 20 {
		counts = append(counts[:20], fmt.Sprintf("and %d more", len(counts)-20))
	}
	fmt.Fprintf(w, "PodTopologySpread\tit %s over %s with maxSkew %d; pods that match %s: %s\n", kind, d.Topology, d.MaxSkew, d.Selector, strings.Join(counts, ", "))
}

// printChoice shows what each node would be worth to a pod that has one.
func printChoice(w io.Writer, r *scheduler.Report, most int) {
	fmt.Fprintln(w, "\nIf it were chosen now, without the pod itself:")
	for i, n := range first(r.Nodes, most) {
		mark := ""
		if n.Node == r.Node {
			mark = ", where it is"
		}
		if i > 0 && n.Node == r.Node && !n.Fits {
			mark += " (rules count only when a node is chosen)"
		}
		printNode(w, n, mark)
	}
	rest(w, r.Nodes, most)
}

func printNodes(w io.Writer, r *scheduler.Report, most int) {
	if len(r.Nodes) == 0 {
		return
	}
	fit := 0
	for _, n := range r.Nodes {
		if n.Fits {
			fit++
		}
	}
	if fit > 0 {
		fmt.Fprintf(w, "\n%d of %d nodes would take it:\n", fit, len(r.Nodes))
	} else {
		fmt.Fprintf(w, "\nNone of %d nodes takes it:\n", len(r.Nodes))
	}
	for _, n := range first(r.Nodes, most) {
		printNode(w, n, "")
	}
	rest(w, r.Nodes, most)
}

func first(nodes []scheduler.NodeReport, most int) []scheduler.NodeReport {
	if most > 0 && len(nodes) > most {
		return nodes[:most]
	}
	return nodes
}

// rest counts, by reason, the nodes that are not shown.
func rest(w io.Writer, nodes []scheduler.NodeReport, most int) {
	if most <= 0 || len(nodes) <= most {
		return
	}
	counts := map[string]int{}
	for _, n := range nodes[most:] {
		reason := "fits"
		if len(n.Findings) > 0 {
			reason = n.Findings[0].Rule + ": " + n.Findings[0].Reason
		}
		counts[reason]++
	}
	var lines []string
	for reason, count := range counts {
		lines = append(lines, fmt.Sprintf("  %d more nodes  %s", count, reason))
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintln(w, "  (--nodes 0 shows all)")
}

func printNode(w io.Writer, n scheduler.NodeReport, mark string) {
	switch {
	case n.Fits:
		var shares []string
		for _, s := range n.Scores {
			shares = append(shares, fmt.Sprintf("%s %d", s.Rule, s.Score))
		}
		fmt.Fprintf(w, "%s: fits, score %d (%s)%s\n", n.Node, n.Total, strings.Join(shares, ", "), mark)
	case len(n.Findings) == 0:
		fmt.Fprintf(w, "%s: has nothing against it; what is said of the pod itself comes first%s\n", n.Node, mark)
	default:
		fmt.Fprintf(w, "%s: does not fit%s\n", n.Node, mark)
	}
	for _, f := range n.Findings {
		printFinding(w, "  ", f)
	}
	if n.Preemption != "" {
		line := n.Preemption
		if len(n.Victims) > 0 {
			line += ": " + strings.Join(n.Victims, ", ")
		}
		fmt.Fprintf(w, "  DefaultPreemption\t%s\n", line)
	}
	if len(n.Nominated) > 0 {
		fmt.Fprintf(w, "  Nominated\troom is kept for %s\n", strings.Join(n.Nominated, ", "))
	}
}
