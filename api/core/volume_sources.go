package core

import (
	"net"
	"path"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// The checks of volume sources that pods and PersistentVolumes share.

// ValidateCSIDriverName checks the name of a CSI driver: at most 63 characters, a
// subdomain apart from upper case.
func ValidateCSIDriverName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	if len(name) > 63 {
		errs = append(errs, field.TooLong(path, "", 63))
	}
	return append(errs, validate.Invalids(path, name, validate.DNSSubdomain(strings.ToLower(name)))...)
}

func hostPath(r *report, h *corev1.HostPathVolumeSource, p *field.Path) {
	if h.Path == "" {
		r.required(p.Child("path"), "")
		return
	}
	r.backsteps(h.Path, p.Child("path"))
	if h.Type != nil {
		oneOf(r, *h.Type, p, "type", corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
			corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)
	}
}

func gceDisk(r *report, d *corev1.GCEPersistentDiskVolumeSource, p *field.Path) {
	r.need(d.PDName, p, "pdName")
	partition(r, d.Partition, p)
}

func awsDisk(r *report, d *corev1.AWSElasticBlockStoreVolumeSource, p *field.Path) {
	r.need(d.VolumeID, p, "volumeID")
	partition(r, d.Partition, p)
}

func partition(r *report, n int32, p *field.Path) {
	if n < 0 || n > 255 {
		r.invalid(p.Child("partition"), n, content.InclusiveRangeError(1, 255)) // 0 is none
	}
}

func nfs(r *report, n *corev1.NFSVolumeSource, p *field.Path) {
	r.need(n.Server, p, "server")
	r.need(n.Path, p, "path")
	if !path.IsAbs(n.Path) {
		r.invalid(p.Child("path"), n.Path, "must be an absolute path")
	}
}

const iscsiTooLong = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."

// Names of iSCSI nodes (RFC 3720, section 3.2.6.3).
var (
	iqnName = regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`)
	euiName = regexp.MustCompile(`^eui.[[:alnum:]]{16}$`)
	naaName = regexp.MustCompile(`^naa.[[:alnum:]]{32}$`)
)

func iscsiName(r *report, name string, p *field.Path, unknown string) {
	switch {
	case strings.HasPrefix(name, "iqn") && iqnName.MatchString(name),
		strings.HasPrefix(name, "eui") && euiName.MatchString(name),
		strings.HasPrefix(name, "naa") && naaName.MatchString(name):
	case strings.HasPrefix(name, "iqn"), strings.HasPrefix(name, "eui"), strings.HasPrefix(name, "naa"):
		r.invalid(p, name, "must be valid format")
	default:
		r.invalid(p, name, unknown)
	}
}

func iscsiPodVolume(r *report, s *corev1.ISCSIVolumeSource, p *field.Path) {
	iscsi(r, s.TargetPortal, s.IQN, s.Lun, s.InitiatorName, "must be valid format starting with iqn, eui, or naa", p,
		(s.DiscoveryCHAPAuth || s.SessionCHAPAuth) && s.SecretRef == nil)
}

func iscsi(r *report, portal, iqn string, lun int32, initiator *string, unknown string, p *field.Path, lacksSecret bool) {
	r.need(portal, p, "targetPortal")
	if iqn == "" {
		r.required(p.Child("iqn"), "")
	} else {
		iscsiName(r, iqn, p.Child("iqn"), unknown)
	}
	inRange(r, lun, 0, 255, p, "lun")
	if lacksSecret {
		r.required(p.Child("secretRef"), "")
	}
	if initiator != nil {
		iscsiName(r, *initiator, p.Child("initiatorname"), unknown)
	}
}

func flocker(r *report, f *corev1.FlockerVolumeSource, p *field.Path) {
	if f.DatasetName == "" && f.DatasetUUID == "" {
		r.required(p, "one of datasetName and datasetUUID is required")
	}
	if f.DatasetName != "" && f.DatasetUUID != "" {
		r.invalid(p, "resource", "datasetName and datasetUUID can not be specified simultaneously")
	}
	if strings.Contains(f.DatasetName, "/") {
		r.invalid(p.Child("datasetName"), f.DatasetName, "must not contain '/'")
	}
}

func rbd(r *report, monitors []string, image string, p *field.Path) {
	cephFS(r, monitors, p)
	r.need(image, p, "image")
}

func cephFS(r *report, monitors []string, p *field.Path) {
	if len(monitors) == 0 {
		r.required(p.Child("monitors"), "")
	}
}

func quobyte(r *report, q *corev1.QuobyteVolumeSource, p *field.Path) {
	const registries = "must be a host:port pair or multiple pairs separated by commas"
	switch {
	case q.Registry == "":
		r.required(p.Child("registry"), registries)
	case len(q.Tenant) >= 65:
		r.required(p.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters")
	default:
		for _, pair := range strings.Split(q.Registry, ",") {
			if _, _, err := net.SplitHostPort(pair); err != nil {
				r.invalid(p.Child("registry"), q.Registry, registries)
			}
		}
	}
	r.need(q.Volume, p, "volume")
}

func fibreChannel(r *report, f *corev1.FCVolumeSource, p *field.Path) {
	if len(f.TargetWWNs) == 0 && len(f.WWIDs) == 0 {
		r.required(p.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
	}
	if len(f.TargetWWNs) != 0 && len(f.WWIDs) != 0 {
		r.invalid(p.Child("targetWWNs"), f.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
	}
	if len(f.TargetWWNs) == 0 {
		return
	}
	if f.Lun == nil {
		r.required(p.Child("lun"), "lun is required if targetWWNs is specified")
	} else if *f.Lun < 0 || *f.Lun > 255 {
		r.invalid(p.Child("lun"), f.Lun, content.InclusiveRangeError(0, 255))
	}
}

func flex(r *report, driver string, options map[string]string, p *field.Path) {
	r.need(driver, p, "driver")
	for key := range options {
		domain, _, _ := strings.Cut(key, "/")
		domain = "." + strings.ToLower(domain)
		if strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io") {
			r.invalid(p.Child("options").Key(key), key, "kubernetes.io and k8s.io namespaces are reserved")
		}
	}
}

func azureDisk(r *report, d *corev1.AzureDiskVolumeSource, p *field.Path) {
	r.need(d.DiskName, p, "diskName")
	r.need(d.DataDiskURI, p, "diskURI")
	if d.CachingMode != nil {
		oneOf(r, *d.CachingMode, p, "cachingMode", corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)
	}
	if d.Kind == nil {
		return
	}
	oneOf(r, *d.Kind, p, "kind", corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)
	prefix, form := "https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	if *d.Kind == corev1.AzureManagedDisk {
		prefix, form = "/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
	}
	if !strings.HasPrefix(d.DataDiskURI, prefix) {
		r.addOne(field.NotSupported(p.Child("diskURI"), d.DataDiskURI, []string{form}))
	}
}

func storageOS(r *report, name, namespace string, p *field.Path) {
	r.needLabel(name, p, "volumeName")
	if namespace != "" {
		r.label(namespace, p, "volumeNamespace")
	}
}

func scaleIO(r *report, gateway, system, volume string, p *field.Path) {
	r.need(gateway, p, "gateway")
	r.need(system, p, "system")
	r.need(volume, p, "volumeName")
}
