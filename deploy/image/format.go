package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"path"
)

// Media types of the OCI image specification v1.1, media-types.md.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// The parts of the formats that loaders need: the OCI image specification v1.1,
// and the docker image specification v1.2 (github.com/moby/docker-image-spec)
// for dockerManifest.
type (
	ociIndex struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	ociManifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Platform    *platform         `json:"platform,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	imageConfig struct {
		Architecture string          `json:"architecture"`
		OS           string          `json:"os"`
		Config       containerConfig `json:"config"`
		RootFS       rootFS          `json:"rootfs"`
	}
	containerConfig struct {
		Entrypoint []string
		Cmd        []string
		WorkingDir string `json:",omitempty"`
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	dockerManifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
)

// encode fills in what is the same in every index.
func (i ociIndex) encode() (blob, error) {
	i.SchemaVersion, i.MediaType = 2, typeIndex
	return json.Marshal(i)
}

func describe(mediaType string, content blob) descriptor {
	return descriptor{MediaType: mediaType, Digest: content.digest(), Size: int64(len(content))}
}

// digest names the content as OCI does.
func (b blob) digest() string { return "sha256:" + b.sum() }

// path is where the content lies in an image layout.
func (b blob) path() string { return "blobs/sha256/" + b.sum() }

func (b blob) sum() string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// walkFiles calls do for every file, in the order of the names.
func walkFiles(root fs.FS, do func(name string, content []byte) error) error {
	return fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		return do(path.Clean(name), content)
	})
}
