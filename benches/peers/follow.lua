-- follow_check for nginx. A shared dictionary caches pairs; both directions of a pair share one key.
local cjson = require "cjson.safe"
local pairs_kept = ngx.shared.pairs
local TTL, ANSWER_END = 3600, '],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}'
local REVERSED = { [0] = 0, [1] = 2, [2] = 1, [3] = 3 }
local concat, format = table.concat, string.format

-- Returns the key of a pair, and whether its relation is stored flipped (from the side of the smaller name).
local function key_of(from, to)
    if from < to then return from .. "\n" .. to, false end
    return to .. "\n" .. from, true
end

local function ask_chat(from, missing)
    local body = cjson.encode({ From_Account = from, To_Account = missing })
    local answer = ngx.location.capture("/v4/follow/follow_check_upstream", { method = ngx.HTTP_POST, body = body })
    local read = cjson.decode(answer.body or "")
    if not read or read.ErrorCode ~= 0 then return nil, answer end
    for _, item in ipairs(read.ResultItem) do
        if item.ResultCode == 0 then
            local key, turned = key_of(from, item.To_Account)
            pairs_kept:set(key, turned and REVERSED[item.FollowType] or item.FollowType, TTL)
        end
    end
    return true
end

return function()
    ngx.req.read_body()
    local question = cjson.decode(ngx.req.get_body_data() or "")
    if not question then return ngx.exit(400) end
    local from, to = question.From_Account, question.To_Account
    local found, missing = {}, {}
    for round = 1, 2 do
        missing = {}
        for at = 1, #to do
            local key, turned = key_of(from, to[at])
            local kept = pairs_kept:get(key)
            if kept then
                found[at] = turned and REVERSED[kept] or kept
            else
                missing[#missing + 1] = to[at]
            end
        end
        if #missing == 0 then break end
        if round == 2 then return ngx.exit(502) end
        local good, answer = ask_chat(from, missing)
        if not good then
            ngx.status = answer.status
            ngx.print(answer.body)
            return
        end
    end
    local items = {}
    for at = 1, #to do
        items[at] = format('{"To_Account":"%s","ResultCode":0,"ResultInfo":"","FollowType":%d}', to[at], found[at])
    end
    local body = '{"ResultItem":[' .. concat(items, ",") .. ANSWER_END
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #body
    ngx.print(body)
end
