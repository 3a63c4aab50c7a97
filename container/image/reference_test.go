package image

import (
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"busybox":                                "docker.io/library/busybox:latest",
		"busybox:1.36":                           "docker.io/library/busybox:1.36",
		"team/app":                               "docker.io/team/app:latest",
		"docker.io/busybox":                      "docker.io/library/busybox:latest",
		"index.docker.io/busybox":                "docker.io/library/busybox:latest",
		"localhost/app":                          "localhost/app:latest",
		"localhost:5000/a/b/c:x":                 "localhost:5000/a/b/c:x",
		"registry.k8s.io/pause:3.10":             "registry.k8s.io/pause:3.10",
		"app@" + sum:                             "docker.io/library/app@" + sum,
		"app:1@" + sum:                           "docker.io/library/app@" + sum,
		"[::1]:5000/app":                         "[::1]:5000/app:latest",
		"":                                       "",
		"UPPER":                                  "",
		"a b":                                    "",
		"app:":                                   "",
		"app@sha256:12":                          "",
		"http://host/app":                        "",
		"-app":                                   "",
		strings.Repeat("a/", 200) + "b":          "",
		"app@sha512:" + strings.Repeat("ab", 64): "",
	} {
		got, err := ParseReference(in)
		if want == "" {
			if err == nil {
				t.Errorf("%q is %s, and should be refused", in, got)
			} else if !strings.Contains(err.Error(), "couldn't parse image name") {
				t.Errorf("%q: %v", in, err)
			}
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%q is %s (%v), want %s", in, got, err, want)
		}
	}
	r, _ := ParseReference("localhost:5000/a/b:x")
	if r.Registry() != "localhost:5000" || r.Repository() != "a/b" {
		t.Errorf("%s %s", r.Registry(), r.Repository())
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"busybox", "a/b:c", "localhost:5000/x@sha256:" + strings.Repeat("0", 64), "::", "a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q gives %q, which gives %q (%v)", s, r, again, err)
		}
		if (r.Tag == "") == (r.Digest == "") || r.Registry() == "" || r.Repository() == "" {
			t.Errorf("%q gives %+v", s, r)
		}
	})
}
