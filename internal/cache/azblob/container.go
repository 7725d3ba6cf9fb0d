package azblob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	sdkcontainer "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/kiln-build/kiln/internal/cache"
)

// container is a cache.Objects.
type container struct {
	client *sdkcontainer.Client
	name   string
}

// attempts is how often a request is made again.
const attempts = 4

// connect makes a client with the key of the attributes, or with what the machine
// has to log in.
func (p *place) connect(c *config) (*container, error) {
	o := &sdk.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: p.http, Telemetry: policy.TelemetryOptions{ApplicationID: "kiln"},
		Retry: policy.RetryOptions{MaxRetries: attempts, RetryDelay: p.c.Backoff, MaxRetryDelay: 20 * p.c.Backoff},
	}}
	var client *sdk.Client
	if c.secret != "" {
		key, err := sdk.NewSharedKeyCredential(c.account, c.secret)
		if err != nil {
			return nil, errors.New("azblob cache: secret_access_key is no key of an account: expected base64")
		}
		if client, err = sdk.NewClientWithSharedKeyCredential(c.url.String(), key, o); err != nil {
			return nil, fmt.Errorf("configure azblob cache: %w", err)
		}
	} else {
		login, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, fmt.Errorf("azblob cache: find credentials for Azure, as secret_access_key is not given: %w", err)
		}
		if client, err = sdk.NewClient(c.url.String(), login, o); err != nil {
			return nil, fmt.Errorf("configure azblob cache: %w", err)
		}
	}
	return &container{client.ServiceClient().NewContainerClient(c.container), c.container}, nil
}

// create makes the container if there is none.
func (c *container) create(ctx context.Context) error {
	_, err := c.client.GetProperties(ctx, nil)
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		if _, err = c.client.Create(ctx, nil); bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
			err = nil
		}
	}
	return c.explain("look for", "the container", err)
}

// missing tells whether a blob is not there. Without a container nothing is.
func missing(err error) bool {
	return bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound)
}

// explain says what went wrong, and what to do.
func (c *container) explain(verb, key string, err error) error {
	r := cache.Refusal{Verb: verb, Key: key, Where: "the container " + c.name,
		Login: "secret_access_key, or the credentials of the machine, and what they allow"}
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		r.Status, r.Code = answer.StatusCode, answer.ErrorCode
	}
	return cache.Refused(r, err)
}

// Get returns a document.
func (c *container) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	out, err := c.client.NewBlobClient(key).DownloadStream(ctx, nil)
	if missing(err) {
		return nil, nil
	} else if err != nil {
		return nil, c.explain("read", key, err)
	}
	defer out.Body.Close()
	data, err := cache.ReadObject(out.Body, limit)
	return data, c.explain("read", key, err)
}

// Put keeps a document.
func (c *container) Put(ctx context.Context, key string, data []byte, ifAbsent bool) (bool, error) {
	o := &blockblob.UploadOptions{}
	if ifAbsent {
		o.AccessConditions = &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}
	}
	_, err := c.client.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(bytes.NewReader(data)), o)
	if ifAbsent && bloberror.HasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
		return false, nil
	}
	return err == nil, c.explain("write", key, err)
}

// Has tells whether there is a blob.
func (c *container) Has(ctx context.Context, key string, size int64) (bool, error) {
	out, err := c.client.NewBlobClient(key).GetProperties(ctx, nil)
	var answer *azcore.ResponseError
	if missing(err) || errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return false, nil
	} else if err != nil {
		return false, c.explain("look for", key, err)
	}
	return out.ContentLength != nil && *out.ContentLength == size, nil
}

// Blocks of an upload, of which two are under way at a time, bytes.
const blockSize, blocksAtOnce = 8 << 20, 2

// Upload sends a blob in blocks. What fails to be read is not kept.
func (c *container) Upload(ctx context.Context, key string, _ int64, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = c.client.NewBlockBlobClient(key).UploadStream(ctx, r, &blockblob.UploadStreamOptions{BlockSize: blockSize, Concurrency: blocksAtOnce})
	return c.explain("write", key, err)
}

// Open reads a blob from an offset on.
func (c *container) Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	out, err := c.client.NewBlobClient(key).DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset}})
	if err != nil {
		return nil, c.explain("read", key, err)
	}
	return out.Body, nil
}
