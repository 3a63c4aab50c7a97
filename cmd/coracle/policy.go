package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/network/policy"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func newPolicy() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Say what NetworkPolicies and ClusterNetworkPolicies allow, and why, without sending traffic",
		Long: `Say what NetworkPolicies and ClusterNetworkPolicies allow, and which rule decides. The answers come from the same
function that the node's packet rules are made with. It reads what the cluster has now, with your own rights, and sends no traffic.`,
	}
	c.AddCommand(newPolicyCheck(), newPolicyMatrix(), newPolicyWhatIf())
	return c
}

// policyCommand is what the three commands have in common.
type policyCommand struct {
	flags  *genericclioptions.ConfigFlags
	dir    string
	output string
	wide   bool // "wide" is an output too
}

func (p *policyCommand) add(c *cobra.Command) {
	p.flags = genericclioptions.NewConfigFlags(true)
	addDataDir(c, &p.dir)
	words := `"json" for a form that programs read`
	if p.wide {
		words += `, "wide" for all names`
	}
	c.Flags().StringVarP(&p.output, "output", "o", "", words)
	p.flags.AddFlags(c.Flags())
}

// situation is all that decides, as it was read.
type situation struct {
	namespace string // of the user's context, or -n
	snapshot  store.Snapshot
	model     *policy.Model
	policies  policies
}

// policies are those of both kinds.
type policies struct {
	plain   []*networkingv1.NetworkPolicy
	cluster []*policyv1alpha2.ClusterNetworkPolicy
}

// load reads the cluster as the user.
func (p *policyCommand) load(cmd *cobra.Command) (*situation, error) {
	if p.output != "" && p.output != "json" && (!p.wide || p.output != "wide") {
		return nil, fmt.Errorf("output %q is not known: see --help", p.output)
	}
	admin := filepath.Join(p.dir, "admin.kubeconfig")
	if _, err := os.Stat(admin); err == nil && (cmd.Flags().Changed("data-dir") || !namesConfig(os.Args)) {
		p.flags.KubeConfig = &admin
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), whyTimeout)
	defer cancel()
	loader := p.flags.ToRawKubeConfigLoader()
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, err
	}
	s := &situation{}
	if s.namespace, _, err = loader.Namespace(); err != nil {
		return nil, err
	}
	config.ContentType, config.QPS, config.Burst = runtime.ContentTypeProtobuf, -1, 0
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return s, s.read(ctx, set)
}

// read lists everything that policies look at, and what the command line may name.
func (s *situation) read(ctx context.Context, set kubernetes.Interface) error {
	state := memory.New(client.StoreOptions(api.NewRegistry(builtin.Kinds()...), 0))
	defer state.Close()
	var txn store.Txn
	take := func(resource string, objects runtime.Object) error {
		return meta.EachListItem(objects, func(item runtime.Object) error {
			object, ok := item.(api.Object)
			if !ok {
				return errors.New("the server sent what is not an object")
			}
			key := store.Key{Resource: resource, Namespace: object.GetNamespace(), Name: object.GetName()}
			txn.Ops = append(txn.Ops, store.Op{Key: key, Object: object, Expect: store.ExpectAny})
			return nil
		})
	}
	for _, l := range []list{
		{client.Nodes.Name, true, as(set.CoreV1().Nodes().List)},
		{client.Pods.Name, true, as(set.CoreV1().Pods("").List)},
		{client.Namespaces.Name, true, as(set.CoreV1().Namespaces().List)},
		{client.NetworkPolicies.Name, true, as(set.NetworkingV1().NetworkPolicies("").List)},
		{client.Services.Name, true, as(set.CoreV1().Services("").List)},
		{client.EndpointSlices.Name, true, as(set.DiscoveryV1().EndpointSlices("").List)},
		{client.Deployments.Name, true, as(set.AppsV1().Deployments("").List)},
		{client.ReplicaSets.Name, true, as(set.AppsV1().ReplicaSets("").List)},
		{client.StatefulSets.Name, true, as(set.AppsV1().StatefulSets("").List)},
		{client.DaemonSets.Name, true, as(set.AppsV1().DaemonSets("").List)},
		{client.Jobs.Name, true, as(set.BatchV1().Jobs("").List)},
	} {
		objects, err := l.read(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return fmt.Errorf("reading %s: %w", l.resource, err)
		}
		if err := take(l.resource, objects); err != nil {
			return err
		}
	}
	// Elsewhere the kind is an add-on, and may be missing.
	var all policyv1alpha2.ClusterNetworkPolicyList
	data, err := set.Discovery().RESTClient().Get().AbsPath("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies").
		SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &all); err != nil {
			return fmt.Errorf("reading %s: %w", policy.ClusterPolicies, err)
		}
		if err := take(policy.ClusterPolicies, &all); err != nil {
			return err
		}
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("reading %s: %w", policy.ClusterPolicies, err)
	}
	if len(txn.Ops) > 0 {
		if _, _, err := state.Commit(ctx, txn); err != nil {
			return err
		}
	}
	s.snapshot = state.Snapshot()
	s.model = policy.Read(s.snapshot)
	for np := range client.NetworkPolicies.List(s.snapshot, "") {
		s.policies.plain = append(s.policies.plain, np)
	}
	for cnp := range client.ClusterNetworkPolicies.List(s.snapshot, "") {
		s.policies.cluster = append(s.policies.cluster, cnp)
	}
	return nil
}

// changed is the policies with those of a file put in and others taken out. The result shares what stays.
func (p policies) changed(put policies, remove []policy.Ref) (policies, error) {
	gone := map[policy.Ref]bool{}
	for _, r := range remove {
		gone[r] = true
	}
	found := map[policy.Ref]bool{}
	for _, np := range put.plain {
		gone[plainRef(np)] = true
	}
	for _, cnp := range put.cluster {
		gone[policy.Ref{Cluster: true, Name: cnp.Name}] = true
	}
	var out policies
	for _, np := range p.plain {
		if found[plainRef(np)] = true; !gone[plainRef(np)] {
			out.plain = append(out.plain, np)
		}
	}
	for _, cnp := range p.cluster {
		ref := policy.Ref{Cluster: true, Name: cnp.Name}
		if found[ref] = true; !gone[ref] {
			out.cluster = append(out.cluster, cnp)
		}
	}
	for _, r := range remove {
		if !found[r] {
			return out, fmt.Errorf("there is no %s to delete", r)
		}
	}
	out.plain, out.cluster = append(out.plain, put.plain...), append(out.cluster, put.cluster...)
	return out, nil
}

func plainRef(np *networkingv1.NetworkPolicy) policy.Ref {
	return policy.Ref{Namespace: np.Namespace, Name: np.Name}
}

// readPolicies reads the policies of a file of YAML or JSON as the API server would: with defaults, and refusing what is wrong.
func readPolicies(in io.Reader, name, namespace string) (policies, error) {
	var out policies
	registry := api.NewRegistry(builtin.Kinds()...)
	documents := kyaml.NewYAMLOrJSONDecoder(in, 4096)
	for {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return out, fmt.Errorf("%s: %w", name, err)
		}
		if len(raw.Raw) == 0 || string(raw.Raw) == "null" {
			continue
		}
		if err := out.take(registry, raw.Raw, namespace); err != nil {
			return out, fmt.Errorf("%s: %w", name, err)
		}
	}
}

// take reads one object, or those of a list.
func (p *policies) take(registry *api.Registry, data []byte, namespace string) error {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	if strings.HasSuffix(head.Kind, "List") {
		for _, item := range head.Items {
			if err := p.take(registry, item, namespace); err != nil {
				return err
			}
		}
		return nil
	}
	gvk := schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)
	k := registry.ByKind(gvk.GroupKind())
	if k == nil || k.Version(gvk.Version) == nil || (k.Name() != client.NetworkPolicies.Name && k.Name() != policy.ClusterPolicies) {
		return fmt.Errorf("%s %s is neither a NetworkPolicy nor a ClusterNetworkPolicy", head.APIVersion, head.Kind)
	}
	obj := k.Version(gvk.Version).New().(api.Object)
	if err := json.Unmarshal(data, obj); err != nil {
		return err
	}
	if k.Namespaced && obj.GetNamespace() == "" {
		obj.SetNamespace(namespace)
	}
	if k.Default != nil {
		k.Default(obj)
	}
	if errs := k.Validate(obj); len(errs) > 0 {
		return fmt.Errorf("%s %s is invalid: %w", head.Kind, obj.GetName(), errs.ToAggregate())
	}
	switch o := obj.(type) {
	case *networkingv1.NetworkPolicy:
		p.plain = append(p.plain, o)
	case *policyv1alpha2.ClusterNetworkPolicy:
		p.cluster = append(p.cluster, o)
	}
	return nil
}

// parseProtocol reads --protocol.
func parseProtocol(text string) (corev1.Protocol, error) {
	switch p := corev1.Protocol(strings.ToUpper(text)); p {
	case "", corev1.ProtocolTCP:
		return corev1.ProtocolTCP, nil
	case corev1.ProtocolUDP, corev1.ProtocolSCTP, policy.ICMP:
		return p, nil
	}
	return "", fmt.Errorf("protocol %q is not known: TCP, UDP, SCTP or ICMP", text)
}

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
