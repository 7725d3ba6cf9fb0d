package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/registry"
)

// bucket is a cache.Objects.
type bucket struct {
	client  *s3.Client
	uploads *transfermanager.Client
	name    string
	touch   time.Duration // objects older than this are made new when they are used
}

// connections is how many are kept for the next request.
const connections = 32

// connect makes a client with the credentials of attributes, or those that the
// machine has.
func (p *place) connect(ctx context.Context, c *config) (*bucket, error) {
	conf, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(c.region),
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired), // blobs have their own
		awsconfig.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, fmt.Errorf("configure s3 cache: %w", err)
	}
	client := s3.NewFromConfig(conf, func(o *s3.Options) {
		if b, ok := o.HTTPClient.(*awshttp.BuildableClient); ok { // with the authorities that $AWS_CA_BUNDLE names
			transport := b.GetTransport()
			transport.MaxIdleConnsPerHost = connections
			o.HTTPClient = &http.Client{Transport: registry.Stalling(transport, p.c.Stall)}
		}
		if c.keyID != "" && c.secret != "" {
			o.Credentials = credentials.NewStaticCredentialsProvider(c.keyID, c.secret, c.token)
		}
		if c.endpoint != "" {
			o.UsePathStyle, o.BaseEndpoint = c.pathStyle, aws.String(c.endpoint)
		}
		if c.retryMode == "" {
			c.retryMode = o.RetryMode
		}
		if c.retryAttempts == 0 {
			c.retryAttempts = o.RetryMaxAttempts
		}
		o.Retryer = p.retryer(c)
		if c.disableAcceptEncoding {
			// Some servers change this header after it was signed: it is not sent then.
			o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
				_, _ = stack.Finalize.Remove("DisableAcceptEncodingGzip") // not there in calls that do not have it
				return nil
			})
		}
	})
	return &bucket{client: client, name: c.bucket, touch: c.touchRefresh, uploads: transfermanager.New(client, func(o *transfermanager.Options) {
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	})}, nil
}

func (p *place) retryer(c *config) aws.Retryer {
	standard := func(o *retry.StandardOptions) {
		if c.retryAttempts > 0 {
			o.MaxAttempts = c.retryAttempts
		}
		o.MaxBackoff = p.c.MaxBackoff
		o.Retryables = append(o.Retryables, retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}})
	}
	if c.retryMode == aws.RetryModeAdaptive {
		return retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) { o.StandardOptions = append(o.StandardOptions, standard) })
	}
	return retry.NewStandard(standard)
}

// statusOf is the status of a refusal, 0 if there was no answer.
func statusOf(err error) int {
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) {
		return answer.HTTPStatusCode()
	}
	return 0
}

// missing tells whether an object is not there. A bucket that is not there is an error.
func missing(err error) bool {
	var api smithy.APIError
	return statusOf(err) == http.StatusNotFound && !(errors.As(err, &api) && api.ErrorCode() == "NoSuchBucket")
}

// explain says what went wrong, and what to do.
func (b *bucket) explain(verb, key string, err error) error {
	r := cache.Refusal{Verb: verb, Key: key, Where: "the bucket " + b.name, Status: statusOf(err),
		Login: "access_key_id and secret_access_key, or the credentials of the machine, and what they allow"}
	var api smithy.APIError
	if errors.As(err, &api) {
		r.Code = api.ErrorCode()
	}
	return cache.Refused(r, err)
}

// Get returns a document.
func (b *bucket) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key})
	if missing(err) {
		return nil, nil
	} else if err != nil {
		return nil, b.explain("read", key, err)
	}
	defer out.Body.Close()
	data, err := cache.ReadObject(out.Body, limit)
	return data, b.explain("read", key, err)
}

// conflicts is how often writers that meet at an object try again.
const conflicts = 5

// Put keeps a document.
func (b *bucket) Put(ctx context.Context, key string, data []byte, ifAbsent bool) (bool, error) {
	in := &s3.PutObjectInput{Bucket: &b.name, Key: &key}
	if ifAbsent {
		in.IfNoneMatch = aws.String("*")
	}
	for n := 1; ; n++ {
		in.Body = bytes.NewReader(data)
		_, err := b.client.PutObject(ctx, in)
		switch status := statusOf(err); {
		case err == nil:
			return true, nil
		case ifAbsent && status == http.StatusPreconditionFailed:
			return false, nil
		case status == http.StatusConflict && n < conflicts:
			continue
		case in.IfNoneMatch != nil && (status == http.StatusNotImplemented || status == http.StatusBadRequest):
			// A server that does not know conditions: whoever comes last is kept.
			if there, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key}); err == nil && there != nil {
				return false, nil
			}
			in.IfNoneMatch = nil
			continue
		default:
			return false, b.explain("write", key, err)
		}
	}
}

// Has tells whether there is an object, which it makes new if it is old: owners
// of buckets have old ones removed.
func (b *bucket) Has(ctx context.Context, key string, size int64) (bool, error) {
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if missing(err) {
		return false, nil
	} else if err != nil {
		return false, b.explain("look for", key, err)
	}
	if aws.ToInt64(out.ContentLength) != size {
		return false, nil
	}
	if out.LastModified == nil || time.Since(*out.LastModified) <= b.touch {
		return true, nil
	}
	return true, b.explain("renew", key, b.renew(ctx, key, size))
}

// largestCopy is the most bytes that are copied by one request.
const largestCopy = 5 << 30

// renew copies an object onto itself.
func (b *bucket) renew(ctx context.Context, key string, size int64) error {
	from := aws.String(url.PathEscape(b.name) + "/" + (&url.URL{Path: key}).EscapedPath())
	if size < largestCopy {
		_, err := b.client.CopyObject(ctx, &s3.CopyObjectInput{
			Bucket: &b.name, CopySource: from, Key: &key,
			Metadata: map[string]string{"updated-at": time.Now().UTC().Format(time.RFC3339)}, MetadataDirective: types.MetadataDirectiveReplace,
		})
		return err
	}
	up, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return err
	}
	if err := b.copyParts(ctx, key, from, up.UploadId, size); err != nil {
		_, aborted := b.client.AbortMultipartUpload(context.WithoutCancel(ctx), &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: up.UploadId})
		return errors.Join(err, aborted)
	}
	return nil
}

func (b *bucket) copyParts(ctx context.Context, key string, from, upload *string, size int64) error {
	var parts []types.CompletedPart
	for at := int64(0); at < size; at += largestCopy {
		number := aws.Int32(int32(len(parts) + 1)) //nolint:gosec // an object has at most 5 TB
		part, err := b.client.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
			Bucket: &b.name, Key: &key, CopySource: from, UploadId: upload, PartNumber: number,
			CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", at, min(at+largestCopy, size)-1)),
		})
		if err != nil {
			return err
		}
		parts = append(parts, types.CompletedPart{ETag: part.CopyPartResult.ETag, PartNumber: number})
	}
	_, err := b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &b.name, Key: &key, UploadId: upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	return err
}

// Upload sends an object in parts. What fails to be read is not kept.
func (b *bucket) Upload(ctx context.Context, key string, _ int64, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = b.uploads.UploadObject(ctx, &transfermanager.UploadObjectInput{Bucket: &b.name, Key: &key, Body: r})
	return b.explain("write", key, err)
}

// Open reads an object from an offset on.
func (b *bucket) Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key}
	if offset > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		return nil, b.explain("read", key, err)
	}
	return out.Body, nil
}
