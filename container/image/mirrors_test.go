package image_test

import (
	"reflect"
	"testing"

	"coracle.dev/coracle/container/image"
)

func TestParseMirrors(t *testing.T) {
	got, err := image.ParseMirrors([]string{"docker.io=https://a:5000", "127.0.0.1:5000", "docker.io=http://b/prefix", "quay.io=c"})
	want := map[string][]string{
		"docker.io": {"https://a:5000", "http://b/prefix"}, "quay.io": {"https://c"}, image.Everywhere: {"https://127.0.0.1:5000"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "=http://a", "docker.io=", "docker.io=ftp://a", "docker.io/library=http://a", "http://user:pw@a"} {
		if m, err := image.ParseMirrors([]string{bad}); err == nil {
			t.Errorf("%q was read as %v", bad, m)
		}
	}
}
