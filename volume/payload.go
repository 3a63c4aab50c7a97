package volume

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"path"
	"sort"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// file is one file of a volume whose content comes from objects.
type file struct {
	data []byte
	mode int32
	// user owns the file, root if nil.
	user *int64
	// token is set in place of data for a service account token that is still to be fetched.
	token *TokenRequest
	// certificate is set in place of data for a part of a pod's certificate.
	certificate *certificateFile
}

// payload is everything in such a volume, by clean relative path.
type payload map[string]file

// fromObjects tells whether a volume's content comes from objects.
func fromObjects(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// planFiles decides what a volume made of objects holds. It is pure: tokens are left as
// requests.
func planFiles(s store.Snapshot, pod *corev1.Pod, vol *corev1.Volume, node string) (payload, error) {
	in := inputs{s: s, pod: pod, node: node}
	out := payload{}
	var err error
	switch {
	case vol.ConfigMap != nil:
		v := vol.ConfigMap
		err = in.configMap(out, v.Name, v.Items, modeOr(v.DefaultMode), isTrue(v.Optional))
	case vol.Secret != nil:
		v := vol.Secret
		err = in.secret(out, v.SecretName, v.Items, modeOr(v.DefaultMode), isTrue(v.Optional))
	case vol.DownwardAPI != nil:
		v := vol.DownwardAPI
		err = in.downwardAPI(out, v.Items, modeOr(v.DefaultMode))
	case vol.Projected != nil:
		err = in.projected(out, vol.Projected)
	}
	if err != nil {
		return nil, err
	}
	for p := range out {
		if err := checkPath(p); err != nil {
			return nil, err
		}
	}
	return clean(out)
}

// inputs are what the sources of a volume are read from.
type inputs struct {
	s    store.Snapshot
	pod  *corev1.Pod
	node string
}

// projected adds all sources in order; of two files at one path the later stays. All
// failures are told at once.
func (in inputs) projected(out payload, v *corev1.ProjectedVolumeSource) error {
	mode := modeOr(v.DefaultMode)
	var errs []error
	for i := range v.Sources {
		src := &v.Sources[i]
		var err error
		switch {
		case src.Secret != nil:
			err = in.secret(out, src.Secret.Name, src.Secret.Items, mode, isTrue(src.Secret.Optional))
		case src.ConfigMap != nil:
			err = in.configMap(out, src.ConfigMap.Name, src.ConfigMap.Items, mode, isTrue(src.ConfigMap.Optional))
		case src.DownwardAPI != nil:
			err = in.downwardAPI(out, src.DownwardAPI.Items, mode)
		case src.ServiceAccountToken != nil:
			in.token(out, src.ServiceAccountToken, mode)
		case src.ClusterTrustBundle != nil:
			err = in.trustBundle(out, src.ClusterTrustBundle, mode)
		case src.PodCertificate != nil:
			in.podCertificate(out, src.PodCertificate, i, mode)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return utilerrors.NewAggregate(errs)
}

func (in inputs) configMap(out payload, name string, items []corev1.KeyToPath, mode int32, optional bool) error {
	cm, ok := client.ConfigMaps.Get(in.s, in.pod.Namespace, name)
	if !ok {
		if optional {
			return nil
		}
		return &missingError{kind: "configmap", name: name}
	}
	if len(items) == 0 {
		for k, v := range cm.Data {
			out[k] = file{data: []byte(v), mode: mode}
		}
		for k, v := range cm.BinaryData {
			out[k] = file{data: v, mode: mode}
		}
		return nil
	}
	for _, item := range items {
		data, ok := cm.BinaryData[item.Key]
		if text, found := cm.Data[item.Key]; found {
			data, ok = []byte(text), true
		}
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("configmap references non-existent config key: %s", item.Key)
		}
		out[item.Path] = file{data: data, mode: itemMode(item.Mode, mode)}
	}
	return nil
}

func (in inputs) secret(out payload, name string, items []corev1.KeyToPath, mode int32, optional bool) error {
	secret, ok := client.Secrets.Get(in.s, in.pod.Namespace, name)
	if !ok {
		if optional {
			return nil
		}
		return &missingError{kind: "secret", name: name}
	}
	if len(items) == 0 {
		for k, v := range secret.Data {
			out[k] = file{data: v, mode: mode}
		}
		return nil
	}
	for _, item := range items {
		data, ok := secret.Data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("references non-existent secret key: %s", item.Key)
		}
		out[item.Path] = file{data: data, mode: itemMode(item.Mode, mode)}
	}
	return nil
}

func (in inputs) downwardAPI(out payload, items []corev1.DownwardAPIVolumeFile, mode int32) error {
	var errs []error
	for i := range items {
		item := &items[i]
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = FieldValue(in.pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = ResourceValue(in.pod, "", item.ResourceFieldRef, in.allocatable())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[item.Path] = file{data: []byte(text), mode: itemMode(item.Mode, mode)}
	}
	return utilerrors.NewAggregate(errs)
}

// allocatable is what the node offers to pods, empty if the node is not registered yet.
func (in inputs) allocatable() corev1.ResourceList {
	node, ok := client.Nodes.Get(in.s, "", in.node)
	if !ok {
		return nil
	}
	return node.Status.Allocatable
}

// token leaves a request. The file is for the user that all containers run as, or for the
// pod's group (which ownership adds), and then for nobody else.
func (in inputs) token(out payload, v *corev1.ServiceAccountTokenProjection, mode int32) {
	user := commonUser(in.pod)
	if user != nil || fsGroup(in.pod) != nil {
		mode = 0o600
	}
	seconds := int64(3600)
	if v.ExpirationSeconds != nil {
		seconds = *v.ExpirationSeconds
	}
	account := in.pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	out[v.Path] = file{mode: mode, user: user, token: &TokenRequest{
		Namespace:         in.pod.Namespace,
		ServiceAccount:    account,
		Audience:          v.Audience,
		ExpirationSeconds: seconds,
		PodName:           in.pod.Name,
		PodUID:            in.pod.UID,
	}}
}

// trustBundles is the canonical resource name of ClusterTrustBundles.
const trustBundles = "clustertrustbundles.certificates.k8s.io"

// trustBundle writes the anchors of one bundle, or of all those of a signer that match, each once
// (KEP-3257).
func (in inputs) trustBundle(out payload, v *corev1.ClusterTrustBundleProjection, mode int32) error {
	var pems []string
	switch {
	case v.Name != nil:
		e := in.s.Get(store.Key{Resource: trustBundles, Name: *v.Name})
		if e != nil {
			_, bundle := bundleOf(e.Object)
			pems = append(pems, bundle)
		} else if !isTrue(v.Optional) {
			return fmt.Errorf("clustertrustbundle.certificates.k8s.io %q not found", *v.Name)
		}
	case v.SignerName != nil:
		sel, err := metav1.LabelSelectorAsSelector(v.LabelSelector)
		if err != nil {
			return fmt.Errorf("while parsing label selector: %w", err)
		}
		for e := range in.s.List(trustBundles, "", nil) {
			signer, bundle := bundleOf(e.Object)
			o, ok := e.Object.(metav1.Object)
			if ok && signer == *v.SignerName && sel.Matches(labels.Set(o.GetLabels())) {
				pems = append(pems, bundle)
			}
		}
		if len(pems) == 0 && !isTrue(v.Optional) {
			return fmt.Errorf("combination of signerName and labelSelector matched zero ClusterTrustBundles")
		}
	default:
		return fmt.Errorf("ClusterTrustBundle projections require either name or signerName to be set")
	}
	out[v.Path] = file{data: uniqueAnchors(pems), mode: mode}
	return nil
}

// bundleOf reads the served versions of ClusterTrustBundle.
func bundleOf(obj any) (signer, bundle string) {
	switch b := obj.(type) {
	case *certificatesv1.ClusterTrustBundle:
		return b.Spec.SignerName, b.Spec.TrustBundle
	case *certificatesv1beta1.ClusterTrustBundle:
		return b.Spec.SignerName, b.Spec.TrustBundle
	}
	return "", ""
}

// uniqueAnchors takes the certificates out of PEM texts, each once, in an order that does not depend
// on that of the texts.
func uniqueAnchors(texts []string) []byte {
	var blocks []string
	seen := map[string]bool{}
	for _, text := range texts {
		rest := []byte(text)
		for {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			one := string(pem.EncodeToMemory(&pem.Block{Type: b.Type, Bytes: b.Bytes}))
			if !seen[one] {
				seen[one] = true
				blocks = append(blocks, one)
			}
		}
	}
	sort.Strings(blocks)
	return []byte(strings.Join(blocks, ""))
}

// missingError says that an object a volume is made of does not exist, in upstream's words.
type missingError struct{ kind, name string }

func (e *missingError) Error() string { return fmt.Sprintf("%s %q not found", e.kind, e.name) }

// maxFileName and maxPath are the limits of Linux.
const (
	maxFileName = 255
	maxPath     = 4096
)

// checkPath refuses a path that would leave the volume or clash with the links by which it is
// switched. The wording is upstream's.
func checkPath(p string) error {
	switch {
	case strings.TrimSpace(p) == "":
		return fmt.Errorf("invalid path: must not be empty: %q", p)
	case path.IsAbs(p):
		return fmt.Errorf("invalid path: must be relative path: %s", p)
	case len(p) > maxPath:
		return fmt.Errorf("invalid path: must be less than or equal to %d characters", maxPath)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("invalid path: must not contain NUL: %q", p)
	}
	items := strings.Split(p, "/")
	for _, item := range items {
		if item == ".." {
			return fmt.Errorf("invalid path: must not contain '..': %s", p)
		}
		if len(item) > maxFileName {
			return fmt.Errorf("invalid path: filenames must be less than or equal to %d characters", maxFileName)
		}
	}
	if strings.HasPrefix(items[0], "..") {
		return fmt.Errorf("invalid path: must not start with '..': %s", p)
	}
	if c := path.Clean(p); c == "." || strings.HasPrefix(c, "..") {
		return fmt.Errorf("invalid path: must name a file: %s", p)
	}
	return nil
}

// clean brings paths to their short form, and refuses a set in which one file would have
// to be another's directory.
func clean(in payload) (payload, error) {
	out := make(payload, len(in))
	names := make([]string, 0, len(in))
	for p := range in {
		names = append(names, p)
	}
	sort.Strings(names)
	for _, p := range names {
		out[path.Clean(p)] = in[p]
	}
	for p := range out {
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if _, ok := out[dir]; ok {
				return nil, fmt.Errorf("conflicting paths: %q is both a file and the directory of %q", dir, p)
			}
		}
	}
	return out, nil
}

// equal compares what two files hold and how.
func (f file) equal(g file) bool {
	return f.mode == g.mode && bytes.Equal(f.data, g.data) &&
		(f.user == nil) == (g.user == nil) && (f.user == nil || *f.user == *g.user)
}

// defaultFileMode is that of API defaulting, for pods that did not pass it.
const defaultFileMode = 0o644

func modeOr(m *int32) int32 { return itemMode(m, defaultFileMode) }
func isTrue(b *bool) bool   { return b != nil && *b }
func itemMode(m *int32, d int32) int32 {
	if m != nil {
		return *m
	}
	return d
}

func fsGroup(pod *corev1.Pod) *int64 {
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.FSGroup
	}
	return nil
}

// commonUser is the user that all containers of a pod are told to run as, nil if they differ
// or one has none.
func commonUser(pod *corev1.Pod) *int64 {
	var common *int64
	for c := range containers(pod) {
		user := podUser(pod)
		if c.security != nil && c.security.RunAsUser != nil {
			user = c.security.RunAsUser
		}
		if user == nil || (common != nil && *common != *user) {
			return nil
		}
		common = user
	}
	return common
}

func podUser(pod *corev1.Pod) *int64 {
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.RunAsUser
	}
	return nil
}

// source is an object that a volume is made of; an empty name stands for all of
// the resource.
type source = store.Key

// sourcesOf lists the objects whose changes can change a pod's volumes.
func sourcesOf(pod *corev1.Pod, wanted []wantedVolume, node string) map[source]struct{} {
	out := map[source]struct{}{}
	add := func(resource, ns, name string) {
		out[source{Resource: resource, Namespace: ns, Name: name}] = struct{}{}
	}
	downward := func(items []corev1.DownwardAPIVolumeFile) {
		for _, item := range items {
			// The other fields of metadata never change.
			if item.ResourceFieldRef != nil {
				add("pods", pod.Namespace, pod.Name)
				add("nodes", "", node)
			} else if f := item.FieldRef; f != nil && (strings.HasPrefix(f.FieldPath, "metadata.labels") || strings.HasPrefix(f.FieldPath, "metadata.annotations")) {
				add("pods", pod.Namespace, pod.Name)
			}
		}
	}
	for i := range wanted {
		v := &wanted[i].Volume
		switch {
		case v.ConfigMap != nil:
			add("configmaps", pod.Namespace, v.ConfigMap.Name)
		case v.Secret != nil:
			add("secrets", pod.Namespace, v.Secret.SecretName)
		case v.DownwardAPI != nil:
			downward(v.DownwardAPI.Items)
		case v.Projected != nil:
			for j := range v.Projected.Sources {
				src := &v.Projected.Sources[j]
				switch {
				case src.ConfigMap != nil:
					add("configmaps", pod.Namespace, src.ConfigMap.Name)
				case src.Secret != nil:
					add("secrets", pod.Namespace, src.Secret.Name)
				case src.DownwardAPI != nil:
					downward(src.DownwardAPI.Items)
				case src.ServiceAccountToken != nil:
					add("serviceaccounts", pod.Namespace, pod.Spec.ServiceAccountName)
				case src.ClusterTrustBundle != nil && src.ClusterTrustBundle.Name != nil:
					add(trustBundles, "", *src.ClusterTrustBundle.Name)
				case src.ClusterTrustBundle != nil:
					add(trustBundles, "", "")
				}
			}
		}
	}
	return out
}

// podUID is checked by callers that look a pod up again by name.
func samePod(pod *corev1.Pod, uid types.UID) bool { return pod != nil && pod.UID == uid }
