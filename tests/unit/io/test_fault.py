"""The judgement of messages: real sentences of libcurl, GDAL, botocore, requests and LanceDB, and what they mean."""

import pytest

from kiln.io.fault import CERTIFICATES, CLOCK, CREDENTIALS, PROXY, REGION, Fault, judge

POOL = "HTTPSConnectionPool(host='data.example', port=443)"
CALL = "when calling the HeadObject operation"
S3 = "LanceError(IO): Generic S3 error"

MESSAGES = {
    Fault.TRANSPORT: (
        # libcurl, through GDAL
        "CURL error: Could not resolve host: data.example",
        "CURL error: Could not resolve proxy: proxy.example",
        "CURL error: Resolving timed out after 10001 milliseconds",
        "CURL error: getaddrinfo() thread failed to start",
        "CURL error: Failed to connect to data.example port 443 after 131 ms: Couldn't connect to server",
        "CURL error: Failed to connect to data.example port 443: Connection refused",
        "CURL error: Immediate connect fail for 2001:db8::1: Network is unreachable",
        "CURL error: Connection timed out after 10001 milliseconds",
        "CURL error: Connection timeout was reached",
        "CURL error: Operation timed out after 60000 milliseconds with 16384 out of 65536 bytes received",
        "CURL error: Operation too slow. Less than 1 bytes/sec transferred the last 60 seconds",
        "CURL error: Recv failure: Connection reset by peer",
        "CURL error: Send failure: Broken pipe",
        "CURL error: Empty reply from server",
        "CURL error: transfer closed with 16384 bytes remaining to read",
        "CURL error: end of response with 812 bytes missing; transfer closed with outstanding read data remaining",
        "CURL error: OpenSSL SSL_connect: Connection reset by peer in connection to data.example:443",
        "CURL error: OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to data.example:443",
        "CURL error: TLS connect error: error:0A000126:SSL routines::unexpected eof while reading",
        "CURL error: OpenSSL SSL_read: OpenSSL/3.0.13: error:0A000119:SSL routines::bad record mac",
        "CURL error: HTTP/2 stream 5 was not closed cleanly: INTERNAL_ERROR (err 2)",
        "CURL error: HTTP/2 stream 1 was reset",
        "CURL error: Error in the HTTP2 framing layer",
        "CURL error: Illegal or missing hexadecimal sequence in chunked-encoding",
        "CURL error: Error while processing content unencoding: invalid stored block lengths",
        "CURL error: Received HTTP code 503 from proxy after CONNECT",
        "CURL error: CONNECT tunnel failed, response 502",
        # GDAL
        "Request for 372390946-372700449 failed with response_code=0",
        "Request for 16384-32767 failed with response_code=503",
        "HTTP response code: 429",
        "HTTP response code: 500",
        "HTTP error code : 504",
        "IReadBlock failed at X offset 1, Y offset 2; Request for 0-16383 failed with response_code=408",
        # botocore
        'Could not connect to the endpoint URL: "https://bucket.s3.us-west-2.amazonaws.com/"',
        'Connect timeout on endpoint URL: "https://bucket.s3.us-west-2.amazonaws.com/a.tif"',
        'Read timeout on endpoint URL: "None"',
        "Connection was closed before we received a valid response from endpoint URL",
        f"An error occurred (503) {CALL} (reached max retries: 4): Service Unavailable",
        f"An error occurred (SlowDown) {CALL}: Please reduce your request rate.",
        f"An error occurred (InternalError) {CALL}: We encountered an internal error. Please try again.",
        "An error occurred (RequestTimeout) when calling the PutObject operation: Your socket connection to the server "
        "was not read from or written to within the timeout period. Idle connections will be closed.",
        "An error occurred while reading from response stream: ('Connection broken: IncompleteRead(8 bytes read, 9 "
        "more expected)', IncompleteRead(8 bytes read, 9 more expected))",
        # requests and urllib3
        f"{POOL}: Max retries exceeded with url: /a.tif (Caused by NewConnectionError('<HTTPSConnection>: Failed to "
        "establish a new connection: [Errno 111] Connection refused'))",
        f"{POOL}: Max retries exceeded with url: /a.tif (Caused by NameResolutionError('Failed to resolve "
        "'data.example' ([Errno -3] Temporary failure in name resolution)'))",
        f"{POOL}: Read timed out. (read timeout=60)",
        f"{POOL}: Max retries exceeded with url: /a.tif (Caused by ConnectTimeoutError('Connection to data.example "
        "timed out. (connect timeout=10)'))",
        "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))",
        "('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))",
        "('Connection broken: IncompleteRead(505 bytes read, 7 more expected)', IncompleteRead(505, 7))",
        "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)",
        f"{POOL}: Max retries exceeded with url: /a.tif (Caused by ProxyError('Unable to connect to proxy', "
        "OSError('Tunnel connection failed: 503 Service Unavailable')))",
        # LanceDB
        f"{S3}: Error performing PUT https://s3.example/a.manifest in 120.7us - HTTP error: error sending request",
        f"{S3}: Error after 10 retries in 3.2s, max_retries:10, retry_timeout:180s, source: operation timed out",
        f"{S3}: Error performing PUT https://s3.example/a.lance, after 10 retries, max_retries: 10, retry_timeout: "
        "180s - Server returned non-2xx status code: 503 Service Unavailable",
        f"{S3}: Error performing GET https://s3.example/a.lance: HTTP error: error decoding response body",
        f"{S3}: client error (Connect): dns error: failed to lookup address information: Name or service not known",
        f"{S3}: connection closed before message completed",
    ),
    Fault.SETUP: (
        "CURL error: SSL certificate problem: unable to get local issuer certificate",
        "CURL error: SSL certificate problem: certificate has expired",
        "CURL error: SSL: no alternative certificate subject name matches target host name 'data.example'",
        "CURL error: error setting certificate verify locations: CAfile: /etc/pki/tls/certs/ca-bundle.crt CApath: none",
        "CURL error: error setting certificate file: /nowhere/ca.pem",
        "CURL error: Received HTTP code 407 from proxy after CONNECT",
        "CURL error: CONNECT tunnel failed, response 403",
        "CURL error: Protocol ftps not supported or disabled in libcurl",
        "HTTP response code: 407",
        "InvalidCredentials: No valid AWS credentials found. For authenticated requests, you need to set "
        "AWS_SECRET_ACCESS_KEY, AWS_ACCESS_KEY_ID or other configuration options.",
        "ExpiredToken: The provided token has expired.",
        "The AWS Access Key Id you provided does not exist in our records.",
        "SignatureDoesNotMatch: The request signature we calculated does not match the signature you provided.",
        "The difference between the request time and the current time is too large.",
        "AuthorizationHeaderMalformed: the region 'us-east-1' is wrong; expecting 'us-west-2'",
        "PermanentRedirect: The bucket you are attempting to access must be addressed using the specified endpoint.",
        "Unable to locate credentials",
        "Partial credentials found in env, missing: aws_secret_access_key",
        "The config profile (kiln) could not be found",
        "Error when retrieving token from sso: Token has expired and refresh failed",
        "The SSO session associated with this profile has expired or is otherwise invalid.",
        "Error loading SSO Token: Token for https://example.awsapps.com/start does not exist",
        "You must specify a region.",
        "Invalid endpoint: s3.example",
        'Invalid bucket name "a..b": Bucket name must match the regex',
        "SSL validation failed for https://bucket.s3.example/ [SSL: CERTIFICATE_VERIFY_FAILED] verify failed",
        f"{POOL}: Max retries exceeded with url: /a (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
        "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain')))",
        f"{POOL}: Max retries exceeded with url: /a (Caused by ProxyError('Unable to connect to proxy', "
        "OSError('Tunnel connection failed: 407 Proxy Authentication Required')))",
        "LanceError(IO): Failed to get AWS credentials: the credentials provider was not properly configured",
        f"{S3}: Error after 0 retries: error sending request: invalid peer certificate: UnknownIssuer",
        f"{S3}: Missing region",
        "LanceError(IO): Failed to get AWS credentials: CredentialsNotLoaded",
    ),
    Fault.DENIED: (
        "AccessDenied: Access Denied",
        "HTTP response code: 403",
        "Request for 0-16383 failed with response_code=403",
        f"An error occurred (403) {CALL}: Forbidden",
        f"{S3}: Client error with status 403 Forbidden: <Error><Code>AccessDenied</Code></Error>",
        "403 Client Error: 403 Forbidden for url",
        "User: arn:aws:iam::1:user/a is not authorized to perform: s3:GetObject on resource",
    ),
    Fault.GONE: (
        "HTTP response code: 404",
        "NoSuchKey: The specified key does not exist.",
        "The specified bucket does not exist",
        f"An error occurred (404) {CALL}: Not Found",
        "LanceError(IO): Object at location a/_versions/1.manifest not found",
        "Failed to connect to namespace: IO { inner: Status { status: 404, body: <Code>NoSuchBucket</Code> } }",
    ),
    Fault.REPLACED: (
        "An error occurred (PreconditionFailed) when calling the GetObject operation: At least one of the "
        "pre-conditions you specified did not hold",
        f"{S3}: Client error with status 412 Precondition Failed",
    ),
    Fault.DISK: (
        "LanceError(IO): Generic LocalFileSystem error: Unable to copy data: No space left on device (os error 28)",
        "[Errno 122] Disk quota exceeded",
    ),
    Fault.UNKNOWN: (
        # what a damaged file looks like, and a cut body, too: no evidence
        "`/vsicurl/https://data.example/a.tif' not recognized as being in a supported file format.",
        "'/vsis3/b/a.tif' does not exist in the file system, and is not recognized as a supported dataset name.",
        "TIFFReadEncodedTile() failed.",
        "TIFFFillTile:Read error at row 0, col 0, tile 5; got 1000 bytes, expected 2000",
        "ZIPDecode:Decoding error at scanline 0, incorrect data check",
        "TIFFReadDirectory:IO error during reading of \"SampleFormat\"",
        "TIFFFetchNormalTag:IO error during reading of \"JPEGTables\"; tag ignored",
        "Range downloading not supported by this server!",
        "JP2OpenJPEG: opj_decode() failed",
        "Read failed. See previous exception for details.",
        "CURL error: Maximum (30) redirects followed",
        "a sentence that nobody has seen yet",
        "",
    ),
}  # fmt: skip
CASES = [(fault, message) for fault, messages in MESSAGES.items() for message in messages]


@pytest.mark.parametrize(("fault", "message"), CASES)
def test_the_verdict_of_a_message(fault, message):
    assert judge(message).fault == fault


@pytest.mark.parametrize(
    ("advice", "message"),
    [
        (CERTIFICATES, "SSL certificate problem: unable to get local issuer certificate"),
        (PROXY, "Received HTTP code 407 from proxy after CONNECT"),
        (CREDENTIALS, "ExpiredToken: The provided token has expired."),
        (CLOCK, "RequestTimeTooSkewed"),
        (REGION, "Missing region"),
    ],
)
def test_a_setting_to_correct_comes_with_what_to_do(advice, message):
    assert judge(message).advice == advice


def test_every_setting_to_correct_has_an_advice():
    assert all(judge(message).advice for message in MESSAGES[Fault.SETUP])


def test_the_cause_decides_and_not_the_broken_connection_that_it_leads_to():
    message = "SSL certificate problem: certificate has expired; Failed to connect to data.example; response_code=0"
    assert judge(message).fault == Fault.SETUP


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("HTTP error: Proxy Authentication Required", PROXY),
        ("An error occurred (InvalidToken) when calling the GetObject operation: it is malformed", CREDENTIALS),
    ],
)
def test_a_code_without_its_usual_sentence_is_known(message, advice):
    assert (judge(message).fault, judge(message).advice) == (Fault.SETUP, advice)


def test_no_verdict_blames_a_file():
    assert {fault.value for fault in Fault} == {
        "transport", "setup", "denied", "gone", "replaced", "disk", "unknown"
    }  # fmt: skip
