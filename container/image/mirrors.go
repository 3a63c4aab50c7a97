package image

import (
	"fmt"
	"net/url"
	"strings"
)

// Everywhere, as a key of Options.Mirrors, stands for every registry.
const Everywhere = "*"

// ParseMirrors reads mirrors as they are written on a command line: "docker.io=https://mirror:5000" for one registry,
// "https://mirror:5000" or "mirror:5000" for all. Without a scheme it is https. The order is kept.
func ParseMirrors(list []string) (map[string][]string, error) {
	out := map[string][]string{}
	for _, text := range list {
		host, mirror, one := strings.Cut(text, "=")
		if !one {
			host, mirror = Everywhere, text
		}
		if !strings.Contains(mirror, "://") {
			mirror = "https://" + mirror
		}
		u, err := url.Parse(mirror)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil ||
			host == "" || strings.ContainsAny(host, "/ ") {
			return nil, fmt.Errorf(`%q is not a mirror such as docker.io=https://mirror:5000 or http://127.0.0.1:5000`, text)
		}
		out[host] = append(out[host], mirror)
	}
	return out, nil
}
