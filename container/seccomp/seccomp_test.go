package seccomp

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// action is what a profile does about a call, whatever its arguments.
func action(p *specs.LinuxSeccomp, name string) specs.LinuxSeccompAction {
	for _, s := range p.Syscalls {
		if slices.Contains(s.Names, name) {
			return s.Action
		}
	}
	return p.DefaultAction
}

func TestDefault(t *testing.T) {
	plain := Default(nil, false)
	admin := Default([]string{"CAP_SYS_ADMIN"}, true)
	for _, test := range []struct {
		call         string
		plain, admin specs.LinuxSeccompAction
	}{
		{"read", specs.ActAllow, specs.ActAllow},
		{"futex_waitv", specs.ActAllow, specs.ActAllow},
		{"clone", specs.ActAllow, specs.ActAllow},
		{"clone3", specs.ActErrno, specs.ActAllow},
		{"mount", specs.ActErrno, specs.ActAllow},
		{"unshare", specs.ActErrno, specs.ActAllow},
		{"setns", specs.ActErrno, specs.ActAllow},
		{"bpf", specs.ActErrno, specs.ActAllow},
		{"io_uring_setup", specs.ActErrno, specs.ActErrno},
		{"userfaultfd", specs.ActErrno, specs.ActErrno},
		{"keyctl", specs.ActErrno, specs.ActErrno},
		{"add_key", specs.ActErrno, specs.ActErrno},
		{"kexec_load", specs.ActErrno, specs.ActErrno},
		{"init_module", specs.ActErrno, specs.ActErrno},
		{"reboot", specs.ActErrno, specs.ActErrno},
		{"ptrace", specs.ActAllow, specs.ActAllow},
		{"swapon", specs.ActErrno, specs.ActErrno},
		{"nfsservctl", specs.ActErrno, specs.ActErrno},
		{"no_such_call", specs.ActErrno, specs.ActErrno},
	} {
		if got := action(plain, test.call); got != test.plain {
			t.Errorf("%s: %s, want %s", test.call, got, test.plain)
		}
		if got := action(admin, test.call); got != test.admin {
			t.Errorf("%s with CAP_SYS_ADMIN: %s, want %s", test.call, got, test.admin)
		}
	}
	for _, s := range plain.Syscalls {
		if s.Names[0] == "clone" && (len(s.Args) != 1 || s.Args[0].Value != 0x7e020000) {
			t.Errorf("clone: %+v", s.Args)
		}
		if s.Names[0] == "clone3" && *s.ErrnoRet != 38 {
			t.Errorf("clone3 gives %d, and C libraries fall back to clone on ENOSYS alone", *s.ErrnoRet)
		}
	}
	if len(admin.Architectures) > 0 && len(admin.Architectures) <= len(plain.Architectures) {
		t.Errorf("architectures %v and %v", plain.Architectures, admin.Architectures)
	}
}

func TestParse(t *testing.T) {
	oci, err := json.Marshal(Default(nil, false))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(oci, nil)
	if err != nil || action(p, "read") != specs.ActAllow || action(p, "mount") != specs.ActErrno {
		t.Errorf("OCI's form: %v", err)
	}
	docker := `{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
		"syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW"},
		{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
		{"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
		{"names":["arm_sync"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["none-such"]}}]}`
	for _, test := range []struct {
		caps                 []string
		read, mount, cl, arm specs.LinuxSeccompAction
	}{
		{nil, specs.ActAllow, specs.ActErrno, specs.ActAllow, specs.ActErrno},
		{[]string{"CAP_SYS_ADMIN"}, specs.ActAllow, specs.ActAllow, specs.ActErrno, specs.ActErrno},
	} {
		p, err := Parse([]byte(docker), test.caps)
		if err != nil {
			t.Fatal(err)
		}
		if action(p, "read") != test.read || action(p, "mount") != test.mount || action(p, "clone") != test.cl || action(p, "arm_sync") != test.arm {
			t.Errorf("%v: %+v", test.caps, p.Syscalls)
		}
	}
	for _, bad := range []string{"", "{", "[]", `{"syscalls":[]}`} {
		if _, err := Parse([]byte(bad), nil); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
