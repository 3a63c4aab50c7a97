package embedded

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coracle.dev/coracle/container"
)

// TestHooks runs programs at every moment of a container's life. What they see tells where they run: on the host, or in the
// container's mount namespace.
func TestHooks(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	seen := filepath.Join(f.dir, "seen")
	var hooks []container.Hook
	for _, name := range []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"} {
		// The configuration is where the state that a hook gets says ("bundle").
		hooks = append(hooks, container.Hook{Name: name, Path: "/bin/sh", Env: []string{"PATH=/bin:/usr/bin", "WORD=" + name}, Timeout: 30, Args: []string{"sh", "-c",
			`state=$(cat); bundle=${state#*'"bundle":"'}; bundle=${bundle%%'"'*}; test -f $bundle/config.json && echo "$WORD $1" >> ` + seen, "sh", "argument"}})
	}
	hooks = append(hooks, container.Hook{Name: "startContainer", Path: "/bin/sh", Args: []string{"sh", "-c", "echo in > /made"}})
	status, out, _ := f.run(sb, "cat /made", func(c *container.ContainerConfig) { c.Hooks = hooks })
	if status.Exit.Code != 0 || out != "in\n" {
		t.Errorf("startContainer: exit %d, out %q", status.Exit.Code, out)
	}
	want := "prestart argument\ncreateRuntime argument\ncreateContainer argument\npoststart argument\npoststop argument\n"
	eventually(t, "poststop", func() bool {
		data, _ := os.ReadFile(seen)
		return strings.Contains(string(data), "poststop")
	})
	if data, _ := os.ReadFile(seen); string(data) != want {
		t.Errorf("hooks ran:\n%swant:\n%s", data, want)
	}
}

// TestHooksFail checks that a container does not run whose hook fails, or takes too long.
func TestHooksFail(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	for _, test := range []struct {
		hook container.Hook
		want string
	}{
		{container.Hook{Name: "createRuntime", Path: "/bin/sh", Args: []string{"sh", "-c", "echo it is broken >&2; exit 3"}}, "it is broken"},
		{container.Hook{Name: "createContainer", Path: "/bin/sh", Args: []string{"sh", "-c", "exec sleep 1000"}, Env: []string{"PATH=/bin:/usr/bin"}, Timeout: 1}, "hook ran past specified timeout of 1.0s"},
	} {
		id := f.create(sb, "true", func(c *container.ContainerConfig) { c.Hooks = []container.Hook{test.hook} })
		if err := f.Start(f.ctx(), id); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.hook.Name, err)
		}
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "unknown", SandboxID: sb, Image: "busybox", Args: []string{"true"},
		Hooks: []container.Hook{{Name: "never", Path: "/bin/true"}}}); err != nil {
		t.Log(err) // refused when it is made, or when it is started
	} else if err := f.Start(f.ctx(), "unknown"); err == nil || !strings.Contains(err.Error(), `unknown hook "never"`) {
		t.Errorf("unknown hook: %v", err)
	}
}
