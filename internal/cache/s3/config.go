package s3

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// config is the attributes of a cache (BuildKit's README, Cache).
type config struct {
	bucket, region, endpoint         string
	prefix, manifests, blobs         string
	names                            []string
	keyID, secret, token             string
	pathStyle, disableAcceptEncoding bool
	touchRefresh                     time.Duration
	parallel                         int
	retryMode                        aws.RetryMode
	retryAttempts                    int
}

// decode reads attributes; what is not given may be in the environment.
func decode(attrs map[string]string, getenv func(string) string) (*config, error) {
	c := &config{
		bucket: attrs["bucket"], region: attrs["region"], endpoint: attrs["endpoint_url"], prefix: attrs["prefix"],
		manifests: "manifests/", blobs: "blobs/", names: []string{"buildkit"}, parallel: 4, touchRefresh: 24 * time.Hour,
		keyID: attrs["access_key_id"], secret: attrs["secret_access_key"], token: attrs["session_token"],
	}
	for _, v := range []struct {
		to        *string
		attr, env string
	}{{&c.bucket, "bucket", "AWS_BUCKET"}, {&c.region, "region", "AWS_REGION"}} {
		if *v.to == "" {
			*v.to = getenv(v.env)
		}
		if *v.to == "" {
			return nil, fmt.Errorf("%s ($%s) not set for s3 cache: name it, as in type=s3,region=REGION,bucket=BUCKET", v.attr, v.env)
		}
	}
	for attr, to := range map[string]*string{"manifests_prefix": &c.manifests, "blobs_prefix": &c.blobs} {
		if v, ok := attrs[attr]; ok {
			*to = v
		}
	}
	if v, ok := attrs["name"]; ok {
		c.names = strings.Split(v, ";")
	}
	for attr, to := range map[string]*int{"upload_parallelism": &c.parallel, "retry_max_attempts": &c.retryAttempts} {
		v, ok := attrs[attr]
		if !ok {
			continue
		}
		n, err := strconv.Atoi(v)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%s must be a positive integer, got %q", attr, v)
		}
		*to = n
	}
	switch mode := attrs["retry_mode"]; mode {
	case "":
	case "standard", "adaptive":
		c.retryMode = aws.RetryMode(mode)
	default:
		return nil, fmt.Errorf("retry_mode must be \"standard\" or \"adaptive\", got %q", mode)
	}
	// As in BuildKit, what cannot be read of these is as if it were not given.
	if d, err := time.ParseDuration(attrs["touch_refresh"]); err == nil {
		c.touchRefresh = d
	}
	c.pathStyle, _ = strconv.ParseBool(attrs["use_path_style"])
	c.disableAcceptEncoding, _ = strconv.ParseBool(attrs["disable_accept_encoding"])
	return c, nil
}

// originPrefix begins the origins of blobs in S3.
const originPrefix = "s3://"

// origin is a URL of what blobs are found by, without credentials.
func (c *config) origin() string {
	q := url.Values{"region": {c.region}, "blobs_prefix": {c.blobs}}
	if c.prefix != "" {
		q.Set("prefix", c.prefix)
	}
	if c.endpoint != "" {
		q.Set("endpoint_url", withoutLogin(c.endpoint))
	}
	if c.pathStyle {
		q.Set("use_path_style", "true")
	}
	if c.disableAcceptEncoding {
		q.Set("disable_accept_encoding", "true")
	}
	return originPrefix + c.bucket + "?" + q.Encode()
}

func withoutLogin(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// attrsOf reads an origin.
func attrsOf(origin string) (map[string]string, error) {
	bucket, query, _ := strings.Cut(strings.TrimPrefix(origin, originPrefix), "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("origin of a blob %q is malformed: %w", origin, err)
	}
	attrs := map[string]string{"bucket": bucket}
	for k := range q {
		attrs[k] = q.Get(k)
	}
	return attrs, nil
}
