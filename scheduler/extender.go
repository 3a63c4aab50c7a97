package scheduler

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Extender is another process that has a say in where pods go, over HTTP, as a KubeSchedulerConfiguration names it
// (kubernetes.io/docs/concepts/extend-kubernetes/#scheduling-extensions). A pass waits for it, HTTPTimeout at most.
type Extender struct {
	URLPrefix      string          `json:"urlPrefix"`
	FilterVerb     string          `json:"filterVerb"`
	PreemptVerb    string          `json:"preemptVerb"`
	PrioritizeVerb string          `json:"prioritizeVerb"`
	Weight         int64           `json:"weight"`
	BindVerb       string          `json:"bindVerb"`
	EnableHTTPS    bool            `json:"enableHTTPS"`
	TLSConfig      *ExtenderTLS    `json:"tlsConfig"`
	HTTPTimeout    metav1.Duration `json:"httpTimeout"`
	// NodeCacheCapable extenders are sent the names of nodes rather than the nodes.
	NodeCacheCapable bool `json:"nodeCacheCapable"`
	// ManagedResources, if not empty, name what pods have to ask for to concern the extender.
	ManagedResources []ManagedResource `json:"managedResources"`
	// Ignorable extenders are passed over when they fail.
	Ignorable bool `json:"ignorable"`

	client *http.Client
}

// ManagedResource is a resource that an extender keeps account of.
type ManagedResource struct {
	Name string `json:"name"`
	// IgnoredByScheduler says that nodes are not asked whether they have enough of it.
	IgnoredByScheduler bool `json:"ignoredByScheduler"`
}

// ExtenderTLS says how an extender is reached and believed. Data weighs more than files.
type ExtenderTLS struct {
	Insecure   bool   `json:"insecure"`
	ServerName string `json:"serverName"`
	CertFile   string `json:"certFile"`
	KeyFile    string `json:"keyFile"`
	CAFile     string `json:"caFile"`
	CertData   []byte `json:"certData"`
	KeyData    []byte `json:"keyData"`
	CAData     []byte `json:"caData"`
}

const (
	extenderTimeout  = 5 * time.Second
	maxExtenderScore = 10
	// maxAnswer bounds what is read of an extender's answer.
	maxAnswer = 64 << 20
)

// complete checks an extender and makes it ready.
func (e *Extender) complete() error {
	if e.URLPrefix == "" {
		return errors.New("urlPrefix: must not be empty")
	}
	if e.PrioritizeVerb != "" && e.Weight <= 0 {
		return errors.New("weight: must have a positive weight applied to it")
	}
	if e.HTTPTimeout.Duration == 0 {
		e.HTTPTimeout.Duration = extenderTimeout
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, IdleConnTimeout: 90 * time.Second}
	if e.TLSConfig != nil || e.EnableHTTPS {
		config, err := e.TLSConfig.config()
		if err != nil {
			return fmt.Errorf("tlsConfig: %w", err)
		}
		transport.TLSClientConfig = config
	}
	e.client = &http.Client{Transport: transport, Timeout: e.HTTPTimeout.Duration}
	return nil
}

func (t *ExtenderTLS) config() (*tls.Config, error) {
	if t == nil { // HTTPS without more is believed to be whoever answers, as upstream has it
		return &tls.Config{InsecureSkipVerify: true}, nil //nolint:gosec // upstream's documented default
	}
	config := &tls.Config{InsecureSkipVerify: t.Insecure, ServerName: t.ServerName} //nolint:gosec // asked for
	data := func(given []byte, file string) ([]byte, error) {
		if len(given) > 0 || file == "" {
			return given, nil
		}
		return os.ReadFile(file)
	}
	ca, err := data(t.CAData, t.CAFile)
	if err != nil {
		return nil, err
	}
	if len(ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("no certificate in the CA data")
		}
	}
	cert, err := data(t.CertData, t.CertFile)
	if err != nil {
		return nil, err
	}
	key, err := data(t.KeyData, t.KeyFile)
	if err != nil || len(cert)+len(key) == 0 {
		return config, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	config.Certificates = []tls.Certificate{pair}
	return config, err
}

// The wire format: fields go by their Go names.
type (
	extenderArgs struct {
		Pod       *corev1.Pod
		Nodes     *corev1.NodeList
		NodeNames *[]string
	}
	extenderFilterResult struct {
		Nodes                      *corev1.NodeList
		NodeNames                  *[]string
		FailedNodes                map[string]string
		FailedAndUnresolvableNodes map[string]string
		Error                      string
	}
	hostPriority struct {
		Host  string
		Score int64
	}
	extenderBinding struct {
		PodName, PodNamespace string
		PodUID                types.UID
		Node                  string
	}
	extenderVictims struct {
		Pods             []*corev1.Pod
		NumPDBViolations int64
	}
	metaPod     struct{ UID types.UID }
	metaVictims struct {
		Pods             []*metaPod
		NumPDBViolations int64
	}
	extenderPreemption struct {
		Pod                   *corev1.Pod
		NodeNameToVictims     map[string]*extenderVictims
		NodeNameToMetaVictims map[string]*metaVictims
	}
	extenderPreemptionResult struct {
		NodeNameToMetaVictims map[string]*metaVictims
	}
)

// interested tells whether a pod concerns the extender.
func (e *Extender) interested(p *corev1.Pod) bool {
	if len(e.ManagedResources) == 0 {
		return true
	}
	asks := func(list corev1.ResourceList) bool {
		return slices.ContainsFunc(e.ManagedResources, func(r ManagedResource) bool { _, ok := list[corev1.ResourceName(r.Name)]; return ok })
	}
	for _, all := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range all {
			if asks(all[i].Resources.Requests) || asks(all[i].Resources.Limits) {
				return true
			}
		}
	}
	return false
}

func (e *Extender) args(p *corev1.Pod, nodes []*node) *extenderArgs {
	a := &extenderArgs{Pod: p}
	if e.NodeCacheCapable {
		names := make([]string, 0, len(nodes))
		for _, n := range nodes {
			names = append(names, n.name)
		}
		a.NodeNames = &names
		return a
	}
	a.Nodes = &corev1.NodeList{}
	for _, n := range nodes {
		a.Nodes.Items = append(a.Nodes.Items, *n.object)
	}
	return a
}

// filter returns the nodes that the extender leaves, and takes note of why it refuses the others.
func (e *Extender) filter(p *corev1.Pod, nodes []*node, refused *refusals) ([]*node, error) {
	var result extenderFilterResult
	if err := e.send(e.FilterVerb, e.args(p, nodes), &result); err != nil {
		return nil, err
	}
	if result.Error != "" {
		return nil, errors.New(result.Error)
	}
	byName := map[string]*node{}
	for _, n := range nodes {
		byName[n.name] = n
	}
	var names []string
	switch {
	case e.NodeCacheCapable && result.NodeNames != nil:
		names = *result.NodeNames
	case result.Nodes != nil:
		for i := range result.Nodes.Items {
			names = append(names, result.Nodes.Items[i].Name)
		}
	}
	var left []*node
	for _, name := range names {
		if byName[name] == nil {
			return nil, fmt.Errorf("extender %q claims a filtered node %q which is not found in the input node list", e.URLPrefix, name)
		}
		left = append(left, byName[name])
	}
	for _, name := range slices.Sorted(maps.Keys(result.FailedAndUnresolvableNodes)) {
		if n := byName[name]; n != nil {
			refused.add(n, []*reason{{result.FailedAndUnresolvableNodes[name], true, anyChange}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(result.FailedNodes)) {
		if _, said := result.FailedAndUnresolvableNodes[name]; byName[name] != nil && !said {
			refused.add(byName[name], []*reason{{result.FailedNodes[name], false, anyChange}})
		}
	}
	return left, nil
}

// prioritize adds what the extender thinks of nodes. One that fails has nothing to say.
func (e *Extender) prioritize(p *corev1.Pod, nodes []*node, scores []int64) {
	var result []hostPriority
	if err := e.send(e.PrioritizeVerb, e.args(p, nodes), &result); err != nil {
		return
	}
	for _, h := range result {
		if i := slices.IndexFunc(nodes, func(n *node) bool { return n.name == h.Host }); i >= 0 {
			scores[i] += h.Score * e.Weight * (maxScore / maxExtenderScore)
		}
	}
}

// preempt returns the candidates that the extender leaves, with the victims that it wants.
func (e *Extender) preempt(p *corev1.Pod, found []*victims) ([]*victims, error) {
	args := extenderPreemption{Pod: p}
	byName := map[string]*victims{}
	for _, v := range found {
		byName[v.node.name] = v
		if e.NodeCacheCapable {
			meta := &metaVictims{NumPDBViolations: int64(v.violations)}
			for _, victim := range v.pods {
				meta.Pods = append(meta.Pods, &metaPod{victim.object.UID})
			}
			set(&args.NodeNameToMetaVictims, v.node.name, meta)
			continue
		}
		full := &extenderVictims{NumPDBViolations: int64(v.violations)}
		for _, victim := range v.pods {
			full.Pods = append(full.Pods, victim.object)
		}
		set(&args.NodeNameToVictims, v.node.name, full)
	}
	var result extenderPreemptionResult
	if err := e.send(e.PreemptVerb, &args, &result); err != nil {
		return nil, err
	}
	var left []*victims
	for _, name := range slices.Sorted(maps.Keys(result.NodeNameToMetaVictims)) {
		of, v := byName[name], result.NodeNameToMetaVictims[name]
		if of == nil {
			return nil, fmt.Errorf("node %q was not asked about", name)
		}
		if v == nil || len(v.Pods) == 0 {
			if e.Ignorable {
				continue
			}
			return nil, fmt.Errorf("expected at least one victim pod on node %q", name)
		}
		fresh := &victims{node: of.node, violations: int(v.NumPDBViolations)}
		for _, m := range v.Pods {
			victim := of.node.pods[m.UID]
			if victim == nil {
				return nil, fmt.Errorf("extender: %v claims to preempt pod (UID: %v) on node: %v, but the pod is not found on that node", e.URLPrefix, m.UID, name)
			}
			fresh.pods = append(fresh.pods, victim)
		}
		slices.SortFunc(fresh.pods, compareImportance)
		left = append(left, fresh)
	}
	return left, nil
}

func set[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}

// bind has the extender bind a pod.
func (e *Extender) bind(p *corev1.Pod, node string) error {
	var result struct{ Error string }
	if err := e.send(e.BindVerb, extenderBinding{p.Name, p.Namespace, p.UID, node}, &result); err != nil {
		return err
	}
	if result.Error != "" {
		return errors.New(result.Error)
	}
	return nil
}

func (e *Extender) send(verb string, args, result any) error {
	body, err := json.Marshal(args)
	if err != nil {
		return err
	}
	response, err := e.client.Post(strings.TrimRight(e.URLPrefix, "/")+"/"+verb, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("failed %v with extender at URL %v, code %v", verb, e.URLPrefix, response.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(result)
}
