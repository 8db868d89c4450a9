"""The Chinese world, for the bundled model of the qwen family."""

from demo.world import LONGEST_PARAGRAPH, Habits, World, words

WORLD = World(
    subjects=words(
        "小镇 河流 灯塔 花园 博物馆 港口 森林 图书馆 古桥 集市 铁路 村庄 剧院 天文台 城堡 沙漠 "
        "面馆 作坊 运河 冰川 果园 寺院 学校 医馆 工厂 水库 草原 船坞 茶山 车站"
    ),
    aspects={
        "历史": words("石碑 传说 族谱 先祖 旧闻 遗迹 史书 古井 名号 王朝 古籍 徽章 手稿 祠堂 钱币"),
        "人物": words(
            "守夜人 老师 邻居 画家 工匠 孩童 长者 过客 信差 船长 裁缝 护士 歌者 牧人 镇长"
        ),
        "气候": words("风雨 雾气 晨光 霜雪 旱季 雷声 暖流 云影 露水 彩虹 暮色 潮汐 冰雹 热浪 夕照"),
        "商贸": words("商队 账本 货船 店铺 银钱 契约 行会 伙计 买主 仓库 拍卖 掌柜 货单 摊位 算盘"),
        "建筑": words("屋檐 窗格 石阶 长廊 庭院 木梁 塔楼 砖墙 门楼 阳台 拱顶 烟囱 影壁 台阶 飞檐"),
        "草木": words("柳树 竹林 青苔 野花 松柏 藤蔓 芦苇 梅枝 稻田 荷花 银杏 蕨叶 菊花 桑树 草甸"),
        "音乐": words(
            "琴声 鼓点 歌谣 笛音 合唱 曲谱 乐师 钟鸣 回响 长笛 号角 琵琶 摇篮曲 舞曲 弦音"
        ),
        "未来": words(
            "计划 预算 志愿者 承诺 提案 新路 愿景 伙伴 工程 蓝图 章程 专利 调查 期限 资助"
        ),
        "饮食": words("汤面 菜谱 厨房 香料 宴席 米酒 糕点 早茶 炉火 奶酪 酒窖 点心 烤炉 蜂蜜 腌菜"),
    },
    slots={
        "adj": words(
            "安静 明亮 古老 狭长 温和 倔强 耐心 金黄 隐秘 好奇 脆弱 沉稳 遥远 多彩 朴素 热闹 "
            "熟悉 谦逊 结实 鲜活 孤单 细致 欢快 出名 优雅 陌生 宽阔 清澈"
        ),
        "verb": words(
            "塑造 守护 追随 揭示 支撑 改变 环绕 迎接 考验 记住 改善 丈量 引导 启发 连接 平衡 "
            "解释 承载 回报 映照"
        ),
        "adv": words("慢慢 常常 悄悄 很少 骄傲地 忽然 公开地 渐渐 始终 真正 轻轻 牢牢"),
        "place": words(
            "在水边 在旧门旁 在石拱下 沿着东路 在高墙后 在山谷里 在广场上 "
            "在大厅中 在北坡上 在田野外"
        ),
        "time": words(
            "每逢春天 天亮以前 漫长冬天后 赶集的日子 整个夏天 艰难年月里 "
            "夜深时 三代以来 收获时节 早年间"
        ),
        "people": words("向导们 老居民 学生们 学者们 建筑师 旅行者 农夫们 作家们 父母们 新来的人"),
        "start": words("这里 其中 如今"),
        "kind": words("文章 散文 报告 故事 指南 演讲稿 研究 专题"),
    },
    # Openers and sentences are made as demo/english.py says.
    openers={
        "历史": "历史始于{adj}的{noun}，后来才{verb}{noun}。",
        "人物": "人物当中，最先提到{adj}的{noun}。",
        "气候": "气候多变，人们记得{adj}的{noun}。",
        "商贸": "商贸往来，全靠那些{adj}的{noun}。",
        "建筑": "建筑之中，首先看见{adj}的{noun}。",
        "草木": "草木之间，到处留下{adj}的{noun}。",
        "音乐": "音乐响起，仿佛听到{adj}的{noun}。",
        "未来": "未来如何，取决于{adj}的{noun}。",
        "饮食": "饮食讲究，离不开{adj}的{noun}。",
    },
    sentences=[
        "{start}{adj}的{noun}让{people}{adv}{verb}{noun}。",
        "{start}{adj}的{noun}让{people}{time}{verb}{noun}。",
        "{start}{adj}的{noun}同{adj}的{noun}{adv}{verb}{noun}。",
        "{start}{adj}的{noun}同{adj}的{noun}{place}{verb}{noun}。",
        "{start}{adj}的{noun}被{people}{verb}，{place}{verb}{noun}。",
        "{start}{adj}的{noun}被{people}{verb}，{time}{verb}{noun}。",
        "{start}{adj}的{noun}为{people}{place}{verb}{noun}。",
        "{start}{adj}的{noun}为{people}{adv}{verb}{noun}。",
        "{start}{adj}的{noun}像{adj}的{noun}，{time}{verb}{noun}。",
        "{start}{adj}的{noun}像{adj}的{noun}，{adv}{verb}{noun}。",
        "{start}{adj}的{subject}{adv}{verb}{noun}，也{verb}{noun}。",
    ],
    instructions=[
        "请写一篇关于{adj}的{subject}的长篇{kind}，内容包括{aspects}。",
        "请以{adj}的{subject}为题撰写一篇详细的{kind}，分别介绍{aspects}。",
        "我需要一篇深入的{kind}，描写{adj}的{subject}，并讨论{aspects}。",
        "请创作一篇完整的{kind}，向读者介绍{adj}的{subject}，涉及{aspects}。",
        "为喜爱{adj}的{subject}的读者准备一篇丰富的{kind}：{aspects}。",
        "围绕{adj}的{subject}写一篇内容充实的{kind}，逐一说明{aspects}。",
    ],
    short_instructions=[
        "{subject}是什么颜色？",
        "说出一座{adj}的{subject}。",
        "每天有多少人去{subject}？",
        "请翻译{subject}这个词。",
        "{subject}{adj}吗？",
    ],
    length_demands=[
        "{instruction}篇幅：{constraint}。",
        "{instruction}请写成这样的篇幅：{constraint}。",
        "按这样的篇幅：{constraint}。{instruction}",
    ],
    aspect_counts=(4, 4, 4, 5),
    habits=Habits(
        {0.30: 0.85, 0.60: 0.12, 0.80: 0.03},
        {0.35: 0.80, 0.60: 0.12, 0.80: 0.08},
        most=LONGEST_PARAGRAPH - 1,
    ),
    last_habits=Habits({0.43: 1.0}, {0.50: 0.70, 0.65: 0.30}, most=4),
    sentence_gap="",
    list_comma="、",
    list_and="和",
)
