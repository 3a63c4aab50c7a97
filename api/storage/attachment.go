package storage

import (
	"math"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const (
	maxMetadata     = 256 * 1024 // bytes
	maxErrorMessage = 1024       // bytes
)

func volumeAttachmentKind() *api.Kind {
	type attachment = *storagev1.VolumeAttachment
	doc := storagev1.VolumeAttachmentSpec{}.SwaggerDoc()
	return &api.Kind{
		Group: group, Kind: "VolumeAttachment", Resource: "volumeattachments", Singular: "volumeattachment",
		Versions: declare.V1[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(a attachment) { a.Status = storagev1.VolumeAttachmentStatus{} }),
			PrepareUpdate: api.OnUpdate(func(a, old attachment) { a.Status = old.Status }),
			Validate:      api.Checks(volumeAttachment),
			ValidateUpdate: api.ChecksUpdate(func(a, old attachment) field.ErrorList {
				return append(volumeAttachment(a), validate.Immutable(a.Spec, old.Spec, field.NewPath("spec"))...)
			}),
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Attacher", doc["attacher"], func(a attachment) any { return a.Spec.Attacher }),
			declare.Text("PV", storagev1.VolumeAttachmentSource{}.SwaggerDoc()["persistentVolumeName"], func(a attachment) any {
				if a.Spec.Source.PersistentVolumeName == nil {
					return ""
				}
				return *a.Spec.Source.PersistentVolumeName
			}),
			declare.Text("Node", doc["nodeName"], func(a attachment) any { return a.Spec.NodeName }),
			{Name: "Attached", Type: "boolean", Description: storagev1.VolumeAttachmentStatus{}.SwaggerDoc()["attached"],
				Cell: api.Cell(func(a attachment) any { return a.Status.Attached })},
			declare.Age(),
		},
		Indexes: map[string]func(api.Object) []string{
			"node": api.Values(func(a attachment) []string { return []string{a.Spec.NodeName} }),
			// By the persistent volume, "" for an inline volume.
			"pv": api.Values(func(a attachment) []string {
				if a.Spec.Source.PersistentVolumeName == nil {
					return []string{""}
				}
				return []string{*a.Spec.Source.PersistentVolumeName}
			}),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(a, old attachment) {
				a.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&a.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(func(a, _ attachment) field.ErrorList { return volumeAttachment(a) }),
		})},
	}
}

func volumeAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	path := field.NewPath("spec")
	errs := core.ValidateCSIDriverName(a.Spec.Attacher, path.Child("attacher"))
	errs = append(errs, attachmentSource(&a.Spec.Source, path.Child("source"))...)
	errs = append(errs, validate.DNSSubdomainField(a.Spec.NodeName, path.Child("nodeName"))...)

	status := field.NewPath("status")
	size := 0
	for k, v := range a.Status.AttachmentMetadata {
		size += len(k) + len(v)
	}
	if size > maxMetadata {
		errs = append(errs, field.TooLong(status.Child("attachmentMetadata"), "", maxMetadata))
	}
	for _, e := range []struct {
		name  string
		value *storagev1.VolumeError
	}{{"attachError", a.Status.AttachError}, {"detachError", a.Status.DetachError}} {
		if e.value != nil && len(e.value.Message) > maxErrorMessage {
			errs = append(errs, field.TooLong(status.Child(e.name, "message"), "", maxMetadata)) // upstream names the other limit
		}
		if e.value != nil && e.value.ErrorCode != nil {
			errs = append(errs, validate.InRange(*e.value.ErrorCode, 0, math.MaxInt32, status.Child(e.name, "errorCode"))...)
		}
	}
	return errs
}

func attachmentSource(s *storagev1.VolumeAttachmentSource, path *field.Path) field.ErrorList {
	const one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName"
	switch {
	case s.InlineVolumeSpec == nil && s.PersistentVolumeName == nil:
		return field.ErrorList{field.Required(path, one)}
	case s.InlineVolumeSpec != nil && s.PersistentVolumeName != nil:
		return field.ErrorList{field.Forbidden(path, one)}
	case s.PersistentVolumeName != nil:
		p := path.Child("persistentVolumeName")
		if *s.PersistentVolumeName == "" {
			return field.ErrorList{field.Required(p, "must specify non empty persistentVolumeName")}
		}
		return validate.DNSSubdomainField(*s.PersistentVolumeName, p)
	default:
		return core.ValidatePersistentVolumeSpec(s.InlineVolumeSpec, "", true, path.Child("inlineVolumeSpec"))
	}
}
