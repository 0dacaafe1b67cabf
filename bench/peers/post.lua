wrk.method = "POST"
wrk.body = '{"prompt": "a picture of a house by the sea", "steps": 20}'
wrk.headers["Content-Type"] = "application/json"
