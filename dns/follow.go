package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/dns/corefile"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Where the configuration is: the conventional config maps of kube-system.
const (
	configNamespace = metav1.NamespaceSystem
	configName      = "coredns"
	customName      = "coredns-custom"
	corefileKey     = "Corefile"
)

// epoch counts the changes of what answers are made from, so that an answer made once can be given again until something it may
// rest on has changed. It is safe for concurrent use.
type epoch struct {
	reader client.Reader
	// seen is the revision through which the count is right.
	seen  atomic.Int64
	count atomic.Uint64

	mu     sync.Mutex // guards cursor
	cursor store.Cursor
}

// named are the resources whose objects have names in the DNS.
var named = []string{client.Services.Name, client.EndpointSlices.Name, client.Namespaces.Name}

// now gives the present count. What is read after the call is at least as new.
func (e *epoch) now() uint64 {
	present := int64(e.reader.Snapshot().Revision())
	if e.seen.Load() >= present {
		return e.count.Load()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seen.Load() >= present {
		return e.count.Load()
	}
	if e.cursor == nil {
		// What happened before is in no answer yet, or nobody knows: all begin anew.
		e.count.Add(1)
		cursor, err := e.reader.Cursor(store.Revision(present), named...)
		if err != nil {
			return e.count.Add(1)
		}
		e.cursor = cursor
	}
	events, err := e.cursor.Poll()
	switch {
	case err != nil:
		e.cursor = nil
		return e.count.Add(1)
	case len(events) > 0:
		e.count.Add(1)
	}
	e.seen.Store(max(int64(e.cursor.Position()), e.seen.Load()))
	return e.count.Load()
}

// begin reads the configuration for the first time.
func (s *Server) begin() error {
	s.epoch.reader = s.Client
	snapshot := s.Client.Snapshot()
	loaded, err := s.load(snapshot)
	if err != nil {
		// The last good one is not known after a restart: the default answers until the text is mended.
		s.tell(snapshot, err)
		if loaded, err = s.compile(nil, nil); err != nil {
			return err
		}
		loaded.versions = versions(snapshot) // it was told of
	}
	s.settings.Store(loaded)
	return nil
}

// follow takes over each change of the configuration until ctx is done.
func (s *Server) follow(ctx context.Context) {
	for ctx.Err() == nil {
		snapshot := s.Client.Snapshot()
		cursor, err := s.Client.Cursor(snapshot.Revision(), client.ConfigMaps.Name)
		if err != nil {
			s.Log.Error("the configuration of the DNS is not followed", "error", err)
			return
		}
		s.reload()
		for {
			events, err := cursor.Next(ctx)
			if err != nil {
				if !errors.Is(err, store.ErrCompacted) {
					return
				}
				break
			}
			if slices.ContainsFunc(events, concerns) {
				s.reload()
			}
		}
	}
}

func concerns(ev store.Event) bool {
	return ev.Entry.Namespace == configNamespace && (ev.Entry.Name == configName || ev.Entry.Name == customName)
}

// reload takes the present configuration over if it is good and another one. Otherwise the last good one stays.
func (s *Server) reload() {
	snapshot := s.Client.Snapshot()
	if versions(snapshot) == s.settings.Load().versions {
		return // and what upstreams said stays
	}
	fresh, err := s.load(snapshot)
	if err != nil {
		s.tell(snapshot, err)
		return
	}
	for _, note := range fresh.notes {
		s.Log.Debug("dns configuration", "note", note)
	}
	old := s.settings.Swap(fresh)
	s.epoch.count.Add(1)
	old.retire()
}

// retire ends what goes on for a configuration that is no longer in use.
func (s *settings) retire() {
	for _, b := range s.blocks {
		for _, f := range b.forwards {
			for _, u := range f.upstreams {
				u.gone.Store(true)
			}
		}
	}
}

// tell says what is wrong with the configuration, where its author looks.
func (s *Server) tell(snapshot store.Snapshot, err error) {
	s.Log.Warn("the configuration of the DNS cannot be used, and the last good one stays", "error", err)
	for _, name := range []string{configName, customName} {
		cm, ok := client.ConfigMaps.Get(snapshot, configNamespace, name)
		if !ok || s.Event == nil {
			continue
		}
		s.Event(reconcile.Event{Type: corev1.EventTypeWarning, Reason: "InvalidCorefile",
			Message:   fmt.Sprintf("%v; the last good configuration stays in use", err),
			Regarding: corev1.ObjectReference{Kind: "ConfigMap", APIVersion: "v1", Namespace: cm.Namespace, Name: cm.Name, UID: cm.UID, ResourceVersion: cm.ResourceVersion}})
		return
	}
}

// load compiles the configuration of a snapshot.
func (s *Server) load(snapshot store.Snapshot) (*settings, error) {
	var main, custom map[string]string
	if cm, ok := client.ConfigMaps.Get(snapshot, configNamespace, configName); ok {
		main = cm.Data
	}
	if cm, ok := client.ConfigMaps.Get(snapshot, configNamespace, customName); ok {
		custom = cm.Data
	}
	loaded, err := s.compile(main, custom)
	if err == nil {
		loaded.versions = versions(snapshot)
	}
	return loaded, err
}

// versions are those of the two config maps, "" for one that is missing.
func versions(snapshot store.Snapshot) (v [2]string) {
	for i, name := range []string{configName, customName} {
		if cm, ok := client.ConfigMaps.Get(snapshot, configNamespace, name); ok {
			v[i] = string(cm.UID) + " " + cm.ResourceVersion
		}
	}
	return v
}

// compile compiles the texts of the two config maps, either of which may be missing.
func (s *Server) compile(main, custom map[string]string) (*settings, error) {
	text := corefile.Text{Name: corefileKey, Data: main[corefileKey]}
	if text.Data == "" {
		text.Data = fmt.Sprintf(DefaultCorefile, s.Domain)
	}
	e := env{domain: strings.ToLower(s.Domain), upstreams: s.Host.Upstreams,
		file: func(name string) (string, bool) {
			for _, keys := range []map[string]string{main, custom} {
				if text, ok := keys[path.Base(name)]; ok {
					return text, true
				}
			}
			return "", false
		}}
	e.domain, _ = canonical(s.Domain)
	return compile(text, func(pattern string) []corefile.Text { return imported(pattern, main, custom) }, e)
}

// imported gives the keys of the config maps that a path stands for: what is in a folder named custom is in coredns-custom.
func imported(pattern string, main, custom map[string]string) []corefile.Text {
	keys := main
	if dir := path.Base(path.Dir(pattern)); dir == "custom" {
		keys = custom
	}
	var out []corefile.Text
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if ok, err := path.Match(path.Base(pattern), key); err == nil && ok && key != corefileKey {
			out = append(out, corefile.Text{Name: key, Data: keys[key]})
		}
	}
	return out
}
