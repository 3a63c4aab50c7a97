package cdi

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"coracle.dev/coracle/container"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestInject(t *testing.T) {
	first, second := filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "run")
	write(t, first, "a.json", `{"cdiVersion": "0.6.0", "kind": "v.com/gpu", "devices": [{"name": "0", "containerEdits": {"env": ["OLD=1"]}}]}`)
	write(t, first, "ignored.txt", "{")
	write(t, second, "b.yaml", `
cdiVersion: 0.6.0
kind: v.com/gpu
containerEdits:
  env: [ALL=1]
  hooks: [{hookName: createContainer, path: /usr/bin/tool, args: [tool, update-ldcache], env: [A=1], timeout: 5}]
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{path: /dev/x, hostPath: /dev/null, permissions: rw, fileMode: 438, uid: 1, gid: 2}, {path: /dev/zero}]
    mounts: [{hostPath: /tmp, containerPath: /x, options: [ro, nosuid, bind]}]
    additionalGids: [7]
- name: "1"
  containerEdits: {env: [ONE=1]}
`)
	dirs := []string{first, second, filepath.Join(first, "none")}
	var cfg container.ContainerConfig
	if err := Inject(&cfg, []string{"v.com/gpu=0", "v.com/gpu=1"}, dirs); err != nil {
		t.Fatal(err)
	}
	uid, gid, mode := uint32(1), uint32(2), uint32(0o666)
	want := container.ContainerConfig{
		Env:     []string{"ALL=1", "ONE=1"},
		Hooks:   []container.Hook{{Name: "createContainer", Path: "/usr/bin/tool", Args: []string{"tool", "update-ldcache"}, Env: []string{"A=1"}, Timeout: 5}},
		Devices: []container.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rw", UID: &uid, GID: &gid, Mode: &mode}, {HostPath: "/dev/zero", ContainerPath: "/dev/zero"}},
		Mounts:  []container.Mount{{HostPath: "/tmp", ContainerPath: "/x", ReadOnly: true, Options: []string{"nosuid"}}},
		User:    container.User{Groups: []uint32{7}},
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
	if err := Inject(&cfg, []string{"v.com/gpu=2", "none"}, dirs); err == nil || err.Error() != "CDI device injection failed: unresolvable CDI devices v.com/gpu=2, none" {
		t.Errorf("unknown devices: %v", err)
	}
	for hook, says := range map[string]string{
		`{"hookName": "late", "path": "/x"}`:     `v.com/h=0: invalid hook name "late"`,
		`{"hookName": "poststop", "path": "x"}`:  `v.com/h=0: invalid hook, path "x" is not absolute`,
		`{"hookName": "poststop", "path": "/x"}`: "",
	} {
		write(t, second, "h.json", `{"kind": "v.com/h", "devices": [{"name": "0", "containerEdits": {"hooks": [`+hook+`]}}]}`)
		err := Inject(&container.ContainerConfig{}, []string{"v.com/h=0"}, dirs)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v", hook, err)
		}
	}
}
