// Package version says which program this is and which Kubernetes it is
// equal to. It holds constants and what the build put in, nothing else.
package version

import (
	"runtime"
	"runtime/debug"

	apiversion "k8s.io/apimachinery/pkg/version"
)

// Kubernetes is the release of upstream whose API and behaviour are served.
const Kubernetes = "v1.37.2"

// Coracle is the release of this program. The build may set it with -ldflags -X.
var Coracle = "v0.1.0-dev"

// Info is what GET /version answers, in upstream's form: clients read the
// Kubernetes release from it.
func Info() apiversion.Info {
	return apiversion.Info{
		Major: "1", Minor: "37",
		EmulationMajor: "1", EmulationMinor: "37",
		MinCompatibilityMajor: "1", MinCompatibilityMinor: "36",
		GitVersion:   Kubernetes + "+coracle." + Coracle[1:],
		GitCommit:    commit(),
		GitTreeState: "clean",
		BuildDate:    "1970-01-01T00:00:00Z",
		GoVersion:    runtime.Version(),
		Compiler:     runtime.Compiler,
		Platform:     runtime.GOOS + "/" + runtime.GOARCH,
	}
}

func commit() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}
