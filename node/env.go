package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/volume"
)

// environment is where the environment variables of a pod's containers come from.
type environment struct {
	snap store.Snapshot
	// pod with the addresses of its sandbox in its status.
	pod *corev1.Pod
	// allocatable stands in for limits that are not set.
	allocatable corev1.ResourceList
	// mounts are the pod's volumes, for fileKeyRef.
	mounts map[string]volume.Mount
}

// variable is one environment variable.
type variable struct{ name, value string }

// of gives the environment of a container: envFrom, env and the services of its namespace, where
// each is overruled by the one before in the order env, envFrom, services. The error is in
// upstream's words and is the message of a CreateContainerConfigError.
func (e *environment) of(c *corev1.Container) ([]variable, error) {
	if e.pod.Spec.EnableServiceLinks == nil {
		return nil, errors.New("nil pod.spec.enableServiceLinks encountered, cannot construct envvars")
	}
	services := serviceEnv(e.snap, e.pod.Namespace, *e.pod.Spec.EnableServiceLinks)
	env := newVariables()
	for i := range c.EnvFrom {
		if err := e.from(env, &c.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := env.get(name); ok {
			return v, true
		}
		v, ok := services.get(name)
		return v, ok
	}
	for i := range c.Env {
		v := &c.Env[i]
		value := v.Value
		if value != "" {
			value = expand(value, lookup)
		} else if v.ValueFrom != nil {
			found, ok, err := e.value(c, v.ValueFrom)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			value = found
		}
		env.set(v.Name, value)
	}
	for _, s := range services.list {
		if _, ok := env.get(s.name); !ok {
			env.set(s.name, s.value)
		}
	}
	return env.list, nil
}

// from adds all keys of a config map or secret.
func (e *environment) from(env *variables, src *corev1.EnvFromSource) error {
	add := func(k, v string) { env.set(src.Prefix+k, v) }
	switch {
	case src.ConfigMapRef != nil:
		cm, ok := client.ConfigMaps.Get(e.snap, e.pod.Namespace, src.ConfigMapRef.Name)
		if !ok {
			if isTrue(src.ConfigMapRef.Optional) {
				return nil
			}
			return fmt.Errorf("configmap %q not found", src.ConfigMapRef.Name)
		}
		for _, k := range sortedKeys(cm.Data) {
			add(k, cm.Data[k])
		}
	case src.SecretRef != nil:
		s, ok := client.Secrets.Get(e.snap, e.pod.Namespace, src.SecretRef.Name)
		if !ok {
			if isTrue(src.SecretRef.Optional) {
				return nil
			}
			return fmt.Errorf("secret %q not found", src.SecretRef.Name)
		}
		for _, k := range sortedKeys(s.Data) {
			add(k, string(s.Data[k]))
		}
	}
	return nil
}

// value resolves a valueFrom; ok is false if it is optional and absent.
func (e *environment) value(c *corev1.Container, from *corev1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = volume.FieldValue(e.pod, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = volume.ResourceValue(e.pod, c.Name, from.ResourceFieldRef, e.allocatable)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, found := client.ConfigMaps.Get(e.snap, e.pod.Namespace, ref.Name)
		if !found {
			return "", false, unless(ref.Optional, fmt.Errorf("configmap %q not found", ref.Name))
		}
		value, found = cm.Data[ref.Key]
		if !found {
			return "", false, unless(ref.Optional, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, e.pod.Namespace, ref.Name))
		}
		return value, true, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, found := client.Secrets.Get(e.snap, e.pod.Namespace, ref.Name)
		if !found {
			return "", false, unless(ref.Optional, fmt.Errorf("secret %q not found", ref.Name))
		}
		data, found := s.Data[ref.Key]
		if !found {
			return "", false, unless(ref.Optional, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, e.pod.Namespace, ref.Name))
		}
		return string(data), true, nil
	case from.FileKeyRef != nil:
		return e.fromFile(from.FileKeyRef)
	}
	return "", false, nil
}

// fromFile reads a variable out of an env file that an init container left in an emptyDir (KEP-3721).
func (e *environment) fromFile(ref *corev1.FileKeySelector) (string, bool, error) {
	mount, ok := e.mounts[ref.VolumeName]
	if !ok || mount.HostPath == "" {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	root, err := os.OpenRoot(mount.HostPath)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	data, err := root.ReadFile(ref.Path)
	if err != nil {
		return "", false, unless(ref.Optional, fmt.Errorf("couldn't parse env file: %w", err))
	}
	value, found, err := envFileValue(string(data), ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	if !found {
		return "", false, unless(ref.Optional, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path))
	}
	return value, true, nil
}

// envFileValue finds a key among lines KEY='value', in the subset of shell syntax that KEP-3721
// allows: single-quoted values that may span lines, comments and blank lines.
func envFileValue(text, key string) (value string, found bool, err error) {
	for len(text) > 0 {
		line, rest, _ := strings.Cut(text, "\n")
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "#") {
			text = rest
			continue
		}
		name, after, ok := strings.Cut(strings.TrimLeft(text, " \t"), "=")
		if !ok || strings.ContainsAny(name, " \t\n") || !strings.HasPrefix(after, "'") {
			return "", false, fmt.Errorf("invalid environment variable format: %q", trimmed)
		}
		end := strings.IndexByte(after[1:], '\'')
		if end < 0 {
			return "", false, fmt.Errorf("unterminated value of %q", name)
		}
		v := after[1 : 1+end]
		tail, next, _ := strings.Cut(after[end+2:], "\n")
		if t := strings.TrimSpace(tail); t != "" && !strings.HasPrefix(t, "#") {
			return "", false, fmt.Errorf("unexpected text behind the value of %q", name)
		}
		if name == key {
			value, found = v, true // the last one counts
		}
		text = next
	}
	return value, found, nil
}

func unless(optional *bool, err error) error {
	if isTrue(optional) {
		return nil
	}
	return err
}

func isTrue(b *bool) bool { return b != nil && *b }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// variables is a list in order of first appearance in which a name appears once.
type variables struct {
	list  []variable
	index map[string]int
}

func newVariables() *variables { return &variables{index: map[string]int{}} }

func (v *variables) get(name string) (string, bool) {
	i, ok := v.index[name]
	if !ok {
		return "", false
	}
	return v.list[i].value, true
}

func (v *variables) set(name, value string) {
	if i, ok := v.index[name]; ok {
		v.list[i].value = value
		return
	}
	v.index[name] = len(v.list)
	v.list = append(v.list, variable{name, value})
}

// serviceEnv gives the variables that name the services of a namespace, and always
// those of the API server
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
func serviceEnv(s store.Snapshot, namespace string, links bool) *variables {
	env := newVariables()
	master, hasMaster := client.Services.Get(s, corev1.NamespaceDefault, "kubernetes")
	if hasMaster && hasAddress(master) {
		addService(env, master)
	}
	if !links {
		return env
	}
	for svc := range client.Services.List(s, namespace) {
		if hasAddress(svc) {
			addService(env, svc)
		}
	}
	return env
}

func hasAddress(s *corev1.Service) bool {
	return s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone
}

func addService(env *variables, s *corev1.Service) {
	name := strings.ReplaceAll(strings.ToUpper(s.Name), "-", "_")
	if len(s.Spec.Ports) == 0 {
		return
	}
	port := strconv.Itoa(int(s.Spec.Ports[0].Port))
	env.set(name+"_SERVICE_HOST", s.Spec.ClusterIP)
	env.set(name+"_SERVICE_PORT", port)
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			env.set(name+"_SERVICE_PORT_"+strings.ReplaceAll(strings.ToUpper(p.Name), "-", "_"), strconv.Itoa(int(p.Port)))
		}
	}
	for i, p := range s.Spec.Ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(corev1.ProtocolTCP)
		}
		number := strconv.Itoa(int(p.Port))
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(s.Spec.ClusterIP, number)
		if i == 0 {
			env.set(name+"_PORT", url)
		}
		prefix := fmt.Sprintf("%s_PORT_%s_%s", name, number, strings.ToUpper(protocol))
		env.set(prefix, url)
		env.set(prefix+"_PROTO", strings.ToLower(protocol))
		env.set(prefix+"_PORT", number)
		env.set(prefix+"_ADDR", s.Spec.ClusterIP)
	}
}

// expand replaces $(NAME) by what lookup finds; "$$" stands for one "$", and a name that
// is not found stays as it is written.
func expand(s string, lookup func(string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				out.WriteString("$(") // unterminated: as it is written
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				out.WriteString(v)
			} else {
				out.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			out.WriteByte('$')
			out.WriteByte(s[i+1])
			i++
		}
	}
	return out.String()
}

// expandAll expands each of a list with variables of the container.
func expandAll(list []string, env *variables) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expand(s, env.get)
	}
	return out
}
