package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
)

// namespaceReport is what keeps a namespace from going away.
type namespaceReport struct {
	Namespace string `json:"namespace"`
	Phase     string `json:"phase"`
	// Finalizers are those of the namespace's specification.
	Finalizers []string `json:"finalizers,omitempty"`
	// Conditions that are true, in upstream's words.
	Conditions []string  `json:"conditions,omitempty"`
	Blocking   []blocker `json:"blocking,omitempty"`
	// More is how many others there are.
	More int `json:"more,omitempty"`
}

// blocker is an object that is still there.
type blocker struct {
	Object     string   `json:"object"` // resource/name
	Deleting   bool     `json:"deleting"`
	Finalizers []string `json:"finalizers,omitempty"`
	Change     string   `json:"change"`
}

// mostBlockers bounds how many objects are named.
const mostBlockers = 50

// namespaceName reads "namespace/NAME".
func namespaceName(arg string) (string, bool) {
	kind, name, ok := strings.Cut(arg, "/")
	return name, ok && name != "" && slices.Contains([]string{"namespace", "namespaces", "ns"}, strings.ToLower(kind))
}

// whyNamespace says what keeps a namespace from going away: it reads the metadata of everything in it.
func whyNamespace(ctx context.Context, out, notes io.Writer, flags *genericclioptions.ConfigFlags, name, output string) error {
	ctx, cancel := context.WithTimeout(ctx, whyTimeout)
	defer cancel()
	config, err := flags.ToRESTConfig()
	if err != nil {
		return err
	}
	config.QPS, config.Burst = -1, 0
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ns, err := set.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	r := namespaceReport{Namespace: name, Phase: string(ns.Status.Phase)}
	for _, f := range ns.Spec.Finalizers {
		r.Finalizers = append(r.Finalizers, string(f))
	}
	for _, f := range ns.Finalizers {
		r.Finalizers = append(r.Finalizers, "metadata: "+f)
	}
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			r.Conditions = append(r.Conditions, fmt.Sprintf("%s: %s: %s", c.Type, c.Reason, c.Message))
		}
	}
	if ns.DeletionTimestamp != nil {
		objects, err := metadata.NewForConfig(config)
		if err != nil {
			return err
		}
		// What could be found out is told even if a group does not answer; the conditions say which.
		lists, err := set.Discovery().ServerPreferredNamespacedResources()
		if err != nil {
			fmt.Fprintln(notes, "coracle:", err)
		}
		for _, gvr := range listable(lists) {
			list, err := objects.Resource(gvr).Namespace(name).List(ctx, metav1.ListOptions{})
			if err != nil {
				fmt.Fprintf(notes, "coracle: reading %s: %v\n", gvr.GroupResource(), err)
				continue
			}
			for i := range list.Items {
				r.add(gvr, &list.Items[i])
			}
		}
	}
	if output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(out)
}

// listable are the resources that can be listed and deleted, each once.
func listable(lists []*metav1.APIResourceList) []schema.GroupVersionResource {
	var all []schema.GroupVersionResource
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "delete") && !(gv.Group == "events.k8s.io" && r.Name == "events") {
				all = append(all, gv.WithResource(r.Name))
			}
		}
	}
	return all
}

func (r *namespaceReport) add(gvr schema.GroupVersionResource, m *metav1.PartialObjectMetadata) {
	if len(r.Blocking) >= mostBlockers {
		r.More++
		return
	}
	b := blocker{Object: gvr.GroupResource().String() + "/" + m.Name, Deleting: m.DeletionTimestamp != nil, Finalizers: m.Finalizers}
	switch {
	case len(m.Finalizers) > 0:
		b.Change = fmt.Sprintf("whoever set %s has to take it away; if nobody does any more: kubectl patch %s %s -n %s --type=merge -p '{\"metadata\":{\"finalizers\":null}}'",
			strings.Join(m.Finalizers, ", "), gvr.GroupResource(), m.Name, r.Namespace)
	case m.DeletionTimestamp != nil && m.DeletionGracePeriodSeconds != nil && *m.DeletionGracePeriodSeconds > 0:
		b.Change = fmt.Sprintf("it has %d s to end", *m.DeletionGracePeriodSeconds)
	case m.DeletionTimestamp != nil:
		b.Change = "it is about to go"
	default:
		b.Change = "it is not deleted yet: the conditions say why"
	}
	r.Blocking = append(r.Blocking, b)
}

func (r *namespaceReport) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if r.Phase != string(corev1.NamespaceTerminating) {
		fmt.Fprintf(w, "Namespace %s is %s; nobody has deleted it.\n", r.Namespace, r.Phase)
		return w.Flush()
	}
	fmt.Fprintf(w, "Namespace %s is being deleted.\n", r.Namespace)
	for _, c := range r.Conditions {
		fmt.Fprintln(w, "  "+c)
	}
	if len(r.Blocking) == 0 && len(r.Finalizers) > 0 {
		fmt.Fprintf(w, "Nothing is left in it; its finalizers are: %s\n", strings.Join(r.Finalizers, ", "))
	}
	for _, b := range r.Blocking {
		state := "not deleted"
		if b.Deleting {
			state = "being deleted"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", b.Object, state, b.Change)
	}
	if r.More > 0 {
		fmt.Fprintf(w, "  and %d more\n", r.More)
	}
	return w.Flush()
}
